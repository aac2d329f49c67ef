// How fast the simulator is: accesses per second of CPU time for every policy (SBR_CACHE_*), on routing of the 4B
// model's shape.
//   bench_simulate [tokens]
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "cache_traces.h"
#include "experts/simulate.h"
#include "sbr/sbr.h"

int main(int argc, char** argv) {
  const sbr_test::RoutingShape shape = {32, 32, 4};
  const auto n_tokens = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 4000);
  if (n_tokens == 0) return EXIT_FAILURE;
  for (const bool hot : {false, true}) {
    sbr_test::Routing routing(shape, 1);
    routing.prefer(0.22, hot ? 15 : 1);
    routing.draw(n_tokens);
    for (const uint32_t percent : {10u, 25u, 50u, 75u}) {
      std::printf("%s, room for %u %%:", hot ? "hot set" : "uniform", percent);
      for (const uint32_t policy :
           {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE, SBR_CACHE_STATIC, SBR_CACHE_BELADY}) {
        sbr_simulate_options options = {};
        options.n_layer = shape.n_layer;
        options.n_expert = shape.n_expert;
        options.n_expert_used = shape.n_used;
        options.policy = policy;
        options.capacity = shape.units() * percent / 100;
        const std::clock_t begin = std::clock();
        const sbr_simulate_result found = sbr::simulate(routing.experts.data(), n_tokens, options);
        const auto requests = static_cast<double>(found.requests);
        const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
        std::printf("  %u: %.1f %% hit, %.1f M/s", policy, 100 * static_cast<double>(found.hits) / requests,
                    1e-6 * requests / seconds);
      }
      std::printf("\n");
    }
  }
  return EXIT_SUCCESS;
}
