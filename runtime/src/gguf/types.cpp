// Sizes of all tensor types that GGUF files use, including those that the runtime cannot compute with.
#include <cstddef>
#include <cstdint>

#include "gguf/gguf.h"

namespace sbr {
namespace {

struct TypeTraits {
  const char* name;
  uint16_t block_elements;
  uint16_t block_bytes;
};

// Indexed by the format's numbers; gaps are types that were withdrawn.
const TypeTraits kTypes[] = {
    {"f32", 1, 4},        {"f16", 1, 2},       {"q4_0", 32, 18},     {"q4_1", 32, 20},      // 0
    {nullptr, 0, 0},      {nullptr, 0, 0},     {"q5_0", 32, 22},     {"q5_1", 32, 24},      // 4
    {"q8_0", 32, 34},     {"q8_1", 32, 40},    {"q2_k", 256, 84},    {"q3_k", 256, 110},    // 8
    {"q4_k", 256, 144},   {"q5_k", 256, 176},  {"q6_k", 256, 210},   {"q8_k", 256, 292},    // 12
    {"iq2_xxs", 256, 66}, {"iq2_xs", 256, 74}, {"iq3_xxs", 256, 98}, {"iq1_s", 256, 50},    // 16
    {"iq4_nl", 32, 18},   {"iq3_s", 256, 110}, {"iq2_s", 256, 82},   {"iq4_xs", 256, 136},  // 20
    {"i8", 1, 1},         {"i16", 1, 2},       {"i32", 1, 4},        {"i64", 1, 8},         // 24
    {"f64", 1, 8},        {"iq1_m", 256, 56},  {"bf16", 1, 2},       {nullptr, 0, 0},       // 28
    {nullptr, 0, 0},      {nullptr, 0, 0},     {"tq1_0", 256, 54},   {"tq2_0", 256, 66},    // 32
    {nullptr, 0, 0},      {nullptr, 0, 0},     {nullptr, 0, 0},      {"mxfp4", 32, 17},     // 36
    {"nvfp4", 64, 36},    {"q1_0", 128, 18},                                                // 40
};

const TypeTraits& traits(uint32_t type) {
  static const TypeTraits unknown = {nullptr, 0, 0};
  return type < sizeof kTypes / sizeof kTypes[0] ? kTypes[type] : unknown;
}

}  // namespace

uint64_t type_row_bytes(uint32_t type, uint64_t n) {
  const TypeTraits& t = traits(type);
  return t.block_elements == 0 ? 0 : n / t.block_elements * t.block_bytes;
}

uint32_t type_block_elements(uint32_t type) { return traits(type).block_elements; }

uint32_t type_block_bytes(uint32_t type) { return traits(type).block_bytes; }

const char* type_name(uint32_t type) { return traits(type).name; }

}  // namespace sbr
