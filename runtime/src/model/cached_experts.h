// A session's experts when they stay on storage: what a layer asks for and when, and in which rounds it computes them.
//
// When a layer's experts are known, thread 0 pins them in the cache: those that are there come first, the others in the
// order in which they were asked for, which is about that of their arrival. The layer then computes in rounds: what has
// arrived when its FFN begins, gate to down, and after that the rest, of which every thread waits only for the expert
// it needs next. A layer that uses more experts than the cache holds goes over them in waves instead, and while one
// wave is computed the next one is read.
#pragma once

#include <cstdint>
#include <vector>

#include "base/balance.h"
#include "experts/cache.h"
#include "model/guess_worth.h"
#include "model/step.h"

namespace sbr {

class CachedExperts {
 public:
  // `depth`: for how many layers ahead experts are guessed. `careful`: only as far as it pays by what was measured so
  // far (SBR_PREFETCH_AUTO). Errors: those of UnitCache.
  CachedExperts(const Bundle& bundle, const Config& config, const CacheOptions& options, uint32_t depth, bool careful);

  // The rest, up to wait(), is for thread 0.

  // Pins the experts of plan.groups (ascending), reorders them, and fills in where they lie.
  void request(uint32_t l, ExpertPlan* plan);
  // As late as possible before round 0: what has arrived goes into it.
  void settle(const ExpertPlan& plan);
  // Gives the units of the rounds before `round` back and asks for those of this one and the next.
  void advance(size_t round, ExpertPlan* plan);
  // Gives all units back.
  void release();
  // The same after a failure, when the last of their reads has ended: one that fails later must not fail the next call.
  void abandon();

  // How many layers ahead are guessed at; changes in settle() alone. By any thread.
  uint32_t depth() const { return resting_ ? 0 : depth_; }
  // What the router of a later layer, l, makes of the present stream -> its likely experts are asked for, instead of
  // those that an earlier stream named. The nearest layer first. `scores` are those of all experts, not yet sorted.
  void guess(uint32_t l, const float* scores);

  // Between a barrier behind request() and release(), by any thread.
  size_t n_rounds() const { return rounds_.size() - 1; }
  Range round(size_t i) const { return {rounds_[i], rounds_[i + 1]}; }  // of plan.groups
  bool in_waves() const { return in_waves_; }
  bool ready(size_t group) const { return pins_[group].ready(); }
  // Until a group's expert is there; false: it cannot be read. Adds to *waited_ns.
  bool wait(size_t group, uint64_t* waited_ns) const;

  void count_wait(uint64_t ns);                  // thread 0's, which has just ended
  uint64_t ns_wait() const { return ns_wait_; }  // since the last reset

  UnitCache& cache() { return cache_; }
  const UnitCache& cache() const { return cache_; }
  sbr_cache_counters counters() const;
  void reset_counters();

 private:
  uint32_t unit(uint32_t l, uint32_t expert) const { return l * units_per_layer_ + expert; }
  void pin(size_t group, ExpertPlan* plan);
  void measure(uint32_t l, const std::vector<ExpertGroup>& groups);
  void judge_guesses(uint32_t l, const std::vector<ExpertGroup>& groups);
  void drop_guesses(uint32_t l);

  // Where an expert's matrices lie in its unit; layers may hold other types.
  struct Parts {
    uint64_t gate, up, down, up_row_bytes;
    bool one_gather;  // rows of up lie whole rows apart, whichever slots they are in
  };

  const uint32_t units_per_layer_;
  const uint32_t n_layer_, n_used_, depth_;
  const bool careful_;
  std::vector<Parts> parts_;  // [n_layer]
  UnitCache cache_;

  uint32_t layer_ = 0;
  bool in_waves_ = false;
  size_t pinned_ = 0;                 // groups [0, pinned_) have been asked for
  std::vector<UnitCache::Pin> pins_;  // by group
  std::vector<uint32_t> rounds_;      // [n_rounds + 1]
  std::vector<ExpertGroup> away_;     // scratch of request()

  // What the routers of layers ahead have named, and how often they were right.
  struct Named {
    uint32_t expert;
    bool missing;  // was neither there nor on its way
  };
  struct Layer {
    std::vector<Named> named;     // [depth][K], the likeliest first, as far as distances go
    std::vector<uint8_t> is;      // [depth] whether it is named at that distance, for the present token
    std::vector<uint32_t> asked;  // experts, of those that were missing
  };
  struct Record {
    float right = kBelievedFor, all = kBelievedFor;
  };
  static constexpr float kBelievedFor = 8;  // guesses for which an untried place is thought to be right
  std::vector<Layer> layers_;               // [n_layer] if there is a depth
  std::vector<Record> records_;             // [depth][K]: of missing experts, by distance and place
  std::vector<uint32_t> likely_;            // [K] scratch of guess()
  GuessWorth worth_;                        // stays as it is unless `careful`
  bool resting_ = false;
  uint64_t waited_until_ = 0;
  std::vector<float> guess_weights_;
  uint64_t predicted_ = 0, predicted_right_ = 0, ns_wait_ = 0;
};

}  // namespace sbr
