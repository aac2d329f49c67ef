// Hit rates of the policies on drawn routings, as docs/expert-cache.md shows them: 26 layers, 6 of 64 experts, or
// 32 layers, 4 of 32.
//   bench_policies 4B|21B
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cache_traces.h"
#include "experts/policy.h"
#include "experts/simulate.h"
#include "sbr/sbr.h"

namespace {

using sbr_test::Routing;
using sbr_test::RoutingShape;

// A line of a table: of the tokens from `from` on, LRU, LFU, REUSE and the most frequent units, for five cache sizes.
void row(const char* what, const Routing& routing, RoutingShape shape, uint32_t from) {
  std::printf("| %s |", what);
  for (const uint32_t percent : {10u, 30u, 50u, 70u, 90u}) {
    for (const uint32_t policy : {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE, SBR_CACHE_STATIC}) {
      sbr_simulate_options options = {};
      options.n_layer = shape.n_layer;
      options.n_expert = shape.n_expert;
      options.n_expert_used = shape.n_used;
      options.policy = policy;
      options.capacity = shape.units() * percent / 100;
      options.warmup_tokens = from;
      const uint64_t n_tokens = routing.experts.size() / (uint64_t{shape.n_layer} * shape.n_used);
      const sbr_simulate_result found = sbr::simulate(routing.experts.data(), n_tokens, options);
      const double rate = 100 * static_cast<double>(found.hits) / static_cast<double>(found.requests);
      std::printf(policy == SBR_CACHE_REUSE ? " **%.1f**" : " %.1f", rate);
    }
    std::printf(" |");
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc == 2 && std::strcmp(argv[1], "4B") == 0;
  if (!small && (argc != 2 || std::strcmp(argv[1], "21B") != 0)) {
    std::fprintf(stderr, "usage: bench_policies 4B|21B\n");
    return EXIT_FAILURE;
  }
  const RoutingShape shape = small ? RoutingShape{32, 32, 4} : RoutingShape{26, 64, 6};
  const auto drawn = [&](const char* what, uint64_t seed, double share, double ratio, double stay) {
    Routing routing(shape, seed);
    if (share > 0) routing.prefer(share, ratio);
    routing.stay(stay);
    routing.draw(1024);
    row(what, routing, shape, 256);
  };
  drawn("uniform", 1, 0, 1, 0);
  drawn("hot: a quarter, 8 times as likely", 2, 0.25, 8, 0);
  drawn("hot: an eighth, 20 times", 3, 0.125, 20, 0);
  Routing zipf(shape, 4);
  zipf.decline(1);
  zipf.draw(1024);
  row("Zipf", zipf, shape, 256);
  drawn("tokens alike", 5, 0, 1, 2);
  drawn("hot and alike", 6, 0.25, 6, 1.5);
  Routing moved(shape, 7);
  moved.prefer(0.25, 8);
  moved.draw(512);
  moved.prefer(0.25, 8);
  moved.draw(64);
  row("hot, 64 tokens since its move", moved, shape, 512);
  moved.draw(448);
  row("hot, 64 to 512 since", moved, shape, 576);
  Routing moving(shape, 8);
  for (int i = 0; i < 16; ++i) {
    moving.prefer(0.25, 8);
    moving.draw(64);
  }
  row("hot, moves every 64", moving, shape, 256);
  return EXIT_SUCCESS;
}
