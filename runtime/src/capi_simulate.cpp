// The C interface of the cache simulator.
#include "capi_calls.h"
#include "experts/simulate.h"
#include "sbr/sbr.h"

extern "C" {

sbr_status sbr_simulate(const uint16_t* experts, uint64_t n_tokens, const sbr_simulate_options* options,
                        sbr_simulate_result* out, sbr_error* error) {
  return sbr::capi::guarded(error, [&] {
    sbr::capi::require(experts, "experts");
    sbr::capi::require_struct(out, "out");
    auto chosen = sbr::capi::read_struct(options, sbr_simulate_options{}, "options");
    sbr_simulate_clock clock = {};
    if (chosen.clock != nullptr) {
      clock = sbr::capi::read_struct(chosen.clock, sbr_simulate_clock{}, "options->clock");
      chosen.clock = &clock;
    }
    sbr::capi::write_struct(sbr::simulate(experts, n_tokens, chosen), out);
  });
}

}  // extern "C"
