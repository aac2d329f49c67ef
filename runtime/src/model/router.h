#pragma once

#include "model/step.h"

namespace sbr {

// Rows of the router -> ws.router [T][E]. It reads the residual stream (before attention and its norm), or, with
// router_after_attention, ws.normed. No barrier.
void score_experts(Worker& worker, uint32_t l);
// The same of later layers, where their experts are guessed -> ws.next_router [depth][E].
void score_later_experts(Worker& worker, uint32_t l);

// Probabilities, top-k (or what the routing says) and weights of some tokens -> plan.expert, plan.weight. Needs a
// barrier before and after.
void select_experts(Worker& worker, uint32_t l, Range tokens);

// Thread 0: groups the batch's tokens by expert, asks for experts that are not in memory, and deals the neurons out.
// Needs a barrier before and after.
void plan_experts(Worker& worker, uint32_t l);

// Thread 0, behind plan_experts: asks for experts that later layers are likely to use. Needs a barrier before and
// after.
void guess_experts(Worker& worker, uint32_t l);

// Probabilities of selected experts -> their weights, p / (their sum).
void weigh(const float* p, uint32_t k, const uint32_t* indices, float* weights);

// The k largest of p[n], the lower index first on a tie -> ascending indices, and their weights.
void top_k(const float* p, uint32_t n, uint32_t k, uint32_t* indices, float* weights);

}  // namespace sbr
