// A known routing, as the simulators walk over it.
#pragma once

#include <cstdint>

namespace sbr {

struct Trace {
  const uint16_t* experts;  // [n_tokens][n_layer][per_set]
  uint64_t n_tokens;
  uint32_t n_layer, n_expert, per_set;

  uint64_t size() const { return n_tokens * n_layer * per_set; }
  uint32_t units() const { return n_layer * n_expert; }

  // Calls f(place, unit) for every access.
  template <typename F>
  void each_unit(F f) const {
    uint64_t place = 0;
    for (uint64_t token = 0; token < n_tokens; ++token) {
      for (uint32_t layer = 0; layer < n_layer; ++layer) {
        for (uint32_t k = 0; k < per_set; ++k, ++place) f(place, layer * n_expert + experts[place]);
      }
    }
  }
};

}  // namespace sbr
