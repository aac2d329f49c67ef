// Every kernel of every instruction set that this CPU has, against the scalar definition, bit by bit.
//
// Inputs end at the last byte before an inaccessible page, so that reading past the end of weights or activations
// crashes; outputs lie between canaries. Weights start at every 2-byte offset that their type allows.
#include "interleaved_checks.h"
#include "kernel_inputs.h"
#include "missing_instructions.h"
#include "neuron_checks.h"

#if defined(__x86_64__)
namespace sbr {
extern const Kernels kAvxVnniTwin;  // avxvnni.cpp, compiled with the other encoding of its dot product
}
#endif

namespace {

// ---- matrix kernels

void check_matrix(const Kernels& k, const TypeCase& type, size_t n, size_t n_rows, Fill fill, size_t offset) {
  const Kernels& scalar = *kernels_for(SBR_ISA_SCALAR);
  const WeightKernels& fast = k.weights[type.type];
  const WeightKernels& slow = scalar.weights[type.type];
  Random random(n * 131 + n_rows * 7 + type.type + uint64_t(fill) * 1000003);
  // Rows are further apart than they are long by a multiple of the alignment, as experts' rows may be.
  const size_t row_bytes = n / weight_block_elements(type.type) * weight_block_bytes(type.type) + offset;
  Guarded<uint8_t> w(row_bytes * n_rows);
  // The gap comes first within each row's span, so that the last row ends at the page's end.
  const uint8_t* first = w.data() + offset;
  for (size_t r = 0; r < n_rows; ++r) fill_row(type.type, n, fill, &random, w.data() + offset + r * row_bytes);

  const size_t n_tokens = 7;
  const Inputs in(n, n_tokens, fill, &random);
  const auto what = [&] {
    return std::string(k.name) + " " + type.name + " n=" + std::to_string(n) + " rows=" + std::to_string(n_rows) +
           " fill=" + std::to_string(int(fill));
  };

  for (size_t t = 0; t < 2; ++t) {
    Output<float> expected(n_rows), got(n_rows);
    slow.gemv(first, row_bytes, n_rows, n, &in.x[t], expected.data());
    fast.gemv(first, row_bytes, n_rows, n, &in.x[t], got.data());
    CHECK_MSG(expected == got, "gemv %s", what().c_str());
    CHECK_MSG(got.canaries_hold(), "gemv %s", what().c_str());
  }

  std::vector<uint32_t> rows(n_rows + 5);
  for (uint32_t& row : rows) row = random.below(uint32_t(n_rows));
  {
    Output<float> expected(rows.size()), got(rows.size());
    slow.gather_gemv(first, row_bytes, rows.data(), rows.size(), n, &in.x[0], expected.data());
    fast.gather_gemv(first, row_bytes, rows.data(), rows.size(), n, &in.x[0], got.data());
    CHECK_MSG(expected == got, "gather_gemv %s", what().c_str());
  }

  for (size_t tokens : {size_t(1), size_t(2), n_tokens}) {
    const size_t y_stride = n_rows + 3;
    Output<float> expected(y_stride * tokens), got(y_stride * tokens);
    slow.gemm(first, row_bytes, n_rows, n, in.x.data(), tokens, expected.data(), y_stride);
    fast.gemm(first, row_bytes, n_rows, n, in.x.data(), tokens, got.data(), y_stride);
    CHECK_MSG(expected == got, "gemm %s tokens=%zu", what().c_str(), tokens);
  }

  // A matrix of no rows and a gather of none leave the output alone.
  Output<float> untouched(4);
  fast.gemv(first, row_bytes, 0, n, &in.x[0], untouched.data());
  fast.gather_gemv(first, row_bytes, rows.data(), 0, n, &in.x[0], untouched.data());
  fast.gemm(first, row_bytes, 0, n, in.x.data(), n_tokens, untouched.data(), 4);
  CHECK_MSG(untouched == Output<float>(4), "empty %s", what().c_str());

  if (!slow.axpy_rows || n % kBlock) return;
  std::vector<float> coefficient(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) coefficient[i] = i % 5 == 3 ? 0.0f : random.unit();
  for (size_t begin : {size_t(0), size_t(32)}) {
    if (begin >= n) continue;
    const size_t end = n > 64 && begin ? n - 32 : n;
    if (end <= begin) continue;
    Output<float> expected(end - begin), got(end - begin);
    for (size_t c = 0; c < end - begin; ++c) expected.data()[c] = got.data()[c] = c % 3 ? 0 : random.unit();
    slow.axpy_rows(first, row_bytes, rows.data(), coefficient.data(), rows.size(), begin, end, expected.data());
    fast.axpy_rows(first, row_bytes, rows.data(), coefficient.data(), rows.size(), begin, end, got.data());
    CHECK_MSG(expected == got, "axpy_rows %s columns %zu..%zu", what().c_str(), begin, end);
  }
}

// Of CPUs that compute each instruction in a signal handler, a part of it all is asked.
enum class Extent { kAll, kSome };

void check_matrices(const Kernels& k, Extent extent) {
  check_interleaved(k, extent == Extent::kAll);
  const Fill some[] = {Fill::kRandom, Fill::kDenormal};
  for (const TypeCase& type : kTypes) {
    std::vector<size_t> lengths;
    if (type.type == SBR_TYPE_Q4_K || type.type == SBR_TYPE_Q6_K) {
      lengths = {256, 512, 1536};
    } else {
      lengths = {32, 64, 96, 128, 160, 1536};
    }
    if (is_float(type.type)) lengths.insert(lengths.end(), {1, 15, 17, 100});
    if (extent == Extent::kSome) {
      for (size_t i = 0; i < 3; ++i) check_matrix(k, type, lengths[i], i == 2 ? 9 : 3, kFills[i + 1], type.alignment);
      check_matrix(k, type, lengths[1], 5, Fill::kRandom, 0);
      continue;
    }
    for (size_t n : lengths) {
      for (size_t n_rows : {1, 2, 3, 4, 5, 7, 8, 16, 17, 33}) {
        if (n > 512 && n_rows > 7 && n_rows != 17) continue;
        check_matrix(k, type, n, n_rows, Fill::kRandom, n_rows % 3 * type.alignment);
        if (n_rows != 3 && n_rows != 17) continue;
        if (n <= 160 || n == 256) {
          for (Fill fill : kFills) check_matrix(k, type, n, n_rows, fill, 0);
        } else {
          for (Fill fill : some) check_matrix(k, type, n, n_rows, fill, type.alignment);
        }
      }
    }
    check_matrix(k, type, 2560, 16, Fill::kRandom, 0);
  }
}

// Products with more tokens than any kernel takes at once.
void check_long_batch(const Kernels& k, size_t tokens) {
  const Kernels& scalar = *kernels_for(SBR_ISA_SCALAR);
  for (const TypeCase& type : kTypes) {
    const size_t n = 512, n_rows = 19;
    Random random(type.type);
    const size_t row_bytes = n / weight_block_elements(type.type) * weight_block_bytes(type.type);
    Guarded<uint8_t> w(row_bytes * n_rows);
    for (size_t r = 0; r < n_rows; ++r) fill_row(type.type, n, Fill::kRandom, &random, w.data() + r * row_bytes);
    const Inputs in(n, tokens, Fill::kRandom, &random);
    Output<float> expected(n_rows * tokens), got(n_rows * tokens);
    scalar.weights[type.type].gemm(w.data(), row_bytes, n_rows, n, in.x.data(), tokens, expected.data(), n_rows);
    k.weights[type.type].gemm(w.data(), row_bytes, n_rows, n, in.x.data(), tokens, got.data(), n_rows);
    CHECK_MSG(expected == got, "gemm %s %s, %zu tokens", k.name, type.name, tokens);
  }
}

// ---- kernels without weights

float float_value(Fill fill, Random* random) {
  const float u = random->unit();
  switch (fill) {
    case Fill::kZero:
      return random->below(2) ? 0.0f : -0.0f;
    case Fill::kLargest:
      return 88.5f;
    case Fill::kSmallest:
      return -103.5f;
    case Fill::kHuge:
      return u * 1e38f;
    case Fill::kTiny:
      return u * 1e-20f;
    case Fill::kDenormal:
      return u * 1e-38f;
    default:
      return u * 12;
  }
}

void check_vectors(const Kernels& k, size_t n, Fill fill) {
  const Kernels& scalar = *kernels_for(SBR_ISA_SCALAR);
  Random random(n * 31 + uint64_t(fill));
  Guarded<float> a(n), b(n);
  for (size_t i = 0; i < n; ++i) {
    a[i] = float_value(fill, &random);
    b[i] = float_value(random.below(4) ? Fill::kRandom : fill, &random);
  }
  const auto same = [&](const char* what, const auto& call, size_t outputs, bool from_a) {
    Output<float> expected(outputs), got(outputs);
    if (from_a) {
      std::memcpy(expected.data(), a.data(), outputs * sizeof(float));
      std::memcpy(got.data(), a.data(), outputs * sizeof(float));
    }
    call(scalar, expected.data());
    call(k, got.data());
    CHECK_MSG(expected == got, "%s %s n=%zu fill=%d", what, k.name, n, int(fill));
  };
  same("rms_norm", [&](const Kernels& t, float* y) { t.rms_norm(a.data(), b.data(), 1e-6f, n, y); }, n, false);
  same("rms_norm in place", [&](const Kernels& t, float* y) { t.rms_norm(y, b.data(), 1e-6f, n, y); }, n, true);
  same("silu_mul", [&](const Kernels& t, float* y) { t.silu_mul(a.data(), b.data(), n, y); }, n, false);
  same("silu_mul in place", [&](const Kernels& t, float* y) { t.silu_mul(y, b.data(), n, y); }, n, true);
  same("relu_mul", [&](const Kernels& t, float* y) { t.relu_mul(a.data(), b.data(), n, y); }, n, false);
  same("relu_mul in place", [&](const Kernels& t, float* y) { t.relu_mul(y, b.data(), n, y); }, n, true);
  same("add", [&](const Kernels& t, float* y) { t.add(b.data(), n, y); }, n, true);
  same("scaled_add", [&](const Kernels& t, float* y) { t.scaled_add(0.37f, b.data(), n, y); }, n, true);
  if (n % 2 == 0) same("rope_neox", [&](const Kernels& t, float* y) { t.rope_neox(y, n, b.data()); }, n, true);
  // exp(inf - inf) is not a number; scores are finite and their differences are in the model's hands
  if (fill != Fill::kHuge) same("softmax", [&](const Kernels& t, float* y) { t.softmax(y, n); }, n, true);

  Output<uint16_t> half_expected(n), half_got(n);
  scalar.f32_to_f16(a.data(), n, half_expected.data());
  k.f32_to_f16(a.data(), n, half_got.data());
  CHECK_MSG(half_expected == half_got, "f32_to_f16 %s n=%zu fill=%d", k.name, n, int(fill));

  for (float threshold : {-0.5f, 0.0f, 2.0f}) {
    Output<uint32_t> expected(n + 16), got(n + 16);
    const size_t n_expected = scalar.compact_greater(a.data(), n, threshold, 1000, expected.data());
    const size_t n_got = k.compact_greater(a.data(), n, threshold, 1000, got.data());
    CHECK_MSG(n_expected == n_got, "compact_greater %s n=%zu", k.name, n);
    CHECK_MSG(std::memcmp(expected.data(), got.data(), n_expected * sizeof(uint32_t)) == 0, "compact_greater %s n=%zu",
              k.name, n);
    CHECK_MSG(got.canaries_hold(), "compact_greater %s n=%zu", k.name, n);
  }

  if (n % kBlock == 0) {
    Output<int8_t> q_expected(n), q_got(n);
    Output<float> d_expected(n / kBlock), d_got(n / kBlock), sum_expected(n / kBlock), sum_got(n / kBlock);
    scalar.quantise(a.data(), n, q_expected.data(), d_expected.data(), sum_expected.data());
    k.quantise(a.data(), n, q_got.data(), d_got.data(), sum_got.data());
    CHECK_MSG(q_expected == q_got && d_expected == d_got && sum_expected == sum_got, "quantise %s n=%zu fill=%d",
              k.name, n, int(fill));
    for (size_t i = 0; i < n; ++i) CHECK(q_expected.data()[i] >= -127);
  }
}

void check_attention(const Kernels& k, size_t head_dim, size_t n_pos) {
  const Kernels& scalar = *kernels_for(SBR_ISA_SCALAR);
  Random random(head_dim * 1000 + n_pos);
  const size_t stride = head_dim + 24;
  constexpr size_t kHeads = 7;  // of a group: whole register tiles, and rests
  const size_t row = n_pos + 3;
  Guarded<float> q(kHeads * head_dim), p((kHeads - 1) * row + n_pos), kv32(stride * (n_pos - 1) + head_dim);
  Guarded<uint16_t> kv16(kv32.size());
  for (size_t i = 0; i < kHeads * head_dim; ++i) q[i] = random.unit();
  for (size_t i = 0; i < (kHeads - 1) * row + n_pos; ++i) p[i] = random.unit() * random.unit();
  for (size_t i = 0; i < kv32.size(); ++i) {
    kv32[i] = random.unit() * (random.below(50) ? 1.0f : 0x1p-18f);
    kv16[i] = f32_to_f16(kv32[i]);
  }
  const auto same = [&](const char* what, const auto& call, size_t outputs) {
    Output<float> expected(outputs), got(outputs);
    call(scalar, expected.data());
    call(k, got.data());
    CHECK_MSG(expected == got, "%s %s head_dim=%zu n_pos=%zu", what, k.name, head_dim, n_pos);
  };
  for (size_t n_heads = 1; n_heads <= kHeads; ++n_heads) {
    const size_t scores = (n_heads - 1) * row + n_pos, out = n_heads * head_dim;
    same(
        "attn_scores_f16",
        [&](const Kernels& t, float* y) {
          t.attn_scores_f16(q.data(), n_heads, kv16.data(), stride, n_pos, head_dim, 0.09f, y, row);
        },
        scores);
    same(
        "attn_scores_f32",
        [&](const Kernels& t, float* y) {
          t.attn_scores_f32(q.data(), n_heads, kv32.data(), stride, n_pos, head_dim, 0.09f, y, row);
        },
        scores);
    same(
        "attn_mix_f16",
        [&](const Kernels& t, float* y) {
          std::fill_n(y, out, 0.25f);
          t.attn_mix_f16(p.data(), row, n_heads, kv16.data(), stride, n_pos, head_dim, y);
        },
        out);
    same(
        "attn_mix_f32",
        [&](const Kernels& t, float* y) {
          std::fill_n(y, out, 0.25f);
          t.attn_mix_f32(p.data(), row, n_heads, kv32.data(), stride, n_pos, head_dim, y);
        },
        out);
  }
}

// All halves through the vector conversion, by attention over one position of weight 1.
void check_all_halves(const Kernels& k) {
  std::vector<uint16_t> halves;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    if ((h & 0x7c00) != 0x7c00) halves.push_back(uint16_t(h));
  }
  std::vector<float> out(halves.size());
  const float one = 1;
  k.attn_mix_f16(&one, 0, 1, halves.data(), 0, 1, halves.size(), out.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    const float expected = std::fma(1.0f, f16_to_f32(halves[i]), 0.0f);
    CHECK_MSG(det_bits_from_float(expected) == det_bits_from_float(out[i]), "%s half %04x", k.name, halves[i]);
  }
  std::vector<uint16_t> back(out.size());
  k.f32_to_f16(out.data(), out.size(), back.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    CHECK_MSG(back[i] == halves[i] || halves[i] == 0x8000, "%s half %04x becomes %04x", k.name, halves[i], back[i]);
  }
}

// ---- scalar kernels against the plain formula

// The scalar kernels are everyone's reference, so they are held against dequantised weights in double precision.
void check_scalar_against_double() {
  const Kernels& scalar = *kernels_for(SBR_ISA_SCALAR);
  for (const TypeCase& type : kTypes) {
    const size_t n = 1024;
    Random random(type.type + 5);
    std::vector<uint8_t> w(n / weight_block_elements(type.type) * weight_block_bytes(type.type));
    fill_row(type.type, n, Fill::kRandom, &random, w.data());
    std::vector<float> weights(n);
    dequantise_row(type.type, w.data(), n, weights.data());
    const Inputs in(n, 1, Fill::kRandom, &random);
    double expected = 0, magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
      const double x = is_float(type.type) ? double(in.x[0].f[i]) : double(in.x[0].q[i]) * in.x[0].d[i / kBlock];
      expected += weights[i] * x;
      magnitude += std::fabs(weights[i] * x);
    }
    float got;
    scalar.weights[type.type].gemv(w.data(), w.size(), 1, n, in.x.data(), &got);
    CHECK_MSG(std::fabs(got - expected) <= 2e-6 * magnitude, "%s: %.9g, expected %.9g", type.name, got, expected);

    if (!scalar.weights[type.type].axpy_rows) continue;
    std::vector<float> y(n);
    const uint32_t row = 0;
    const float c = 0.75f;
    scalar.weights[type.type].axpy_rows(w.data(), w.size(), &row, &c, 1, 0, n, y.data());
    for (size_t i = 0; i < n; ++i) CHECK(std::fabs(y[i] - 0.75 * double(weights[i])) <= 1e-6 * std::fabs(weights[i]));
  }
  // Rule 3 gives back its input to half a level.
  Random random(9);
  const Inputs in(96, 1, Fill::kRandom, &random);
  for (size_t i = 0; i < 96; ++i) {
    CHECK(std::fabs(in.x[0].f[i] - in.x[0].q[i] * in.x[0].d[i / kBlock]) <= 0.501f * in.x[0].d[i / kBlock]);
  }
  std::vector<float> x = {1, 2, 3, -1000, 5};
  scalar.softmax(x.data(), x.size());
  const double total = std::exp(-4.0) + std::exp(-3.0) + std::exp(-2.0) + 1;
  CHECK(std::fabs(x[0] - std::exp(-4.0) / total) < 1e-8 && x[3] == 0 && std::fabs(x[4] - 1 / total) < 1e-7);
}

void check_dispatch() {
  CHECK(kernels_count() >= 1 && kernels_at(0)->isa == SBR_ISA_SCALAR);
  CHECK(kernels_at(kernels_count()) == nullptr);
  CHECK(kernels_for(99) == nullptr);
  CHECK(kernels_for(SBR_ISA_AUTO) == kernels_best());
  CHECK(kernels_supported(kernels_best()));
  for (size_t i = 0; i < kernels_count(); ++i) {
    const Kernels& k = *kernels_at(i);
    CHECK(kernels_for(k.isa) == &k);
    CHECK(k.quantise && k.rms_norm && k.silu_mul && k.relu_mul && k.compact_greater && k.add && k.scaled_add);
    CHECK(k.rope_neox && k.f32_to_f16 && k.attn_scores_f16 && k.attn_scores_f32 && k.softmax && k.attn_mix_f16 &&
          k.attn_mix_f32);
    for (const TypeCase& type : kTypes) {
      const WeightKernels& w = k.weights[type.type];
      CHECK(w.gemv && w.gather_gemv && w.gemm);
      const bool down = is_float(type.type) || type.type == SBR_TYPE_Q4_0 || type.type == SBR_TYPE_Q8_0;
      CHECK((w.axpy_rows != nullptr) == down);
      const WeightKernels& tiles = k.weights[kInterleaved + type.type];
      CHECK((tiles.gemv != nullptr) == can_interleave(type.type) && (tiles.gemm != nullptr) == (tiles.gemv != nullptr));
    }
  }
}

void check_all(const Kernels& k) {
  check_all_halves(k);
  if (k.isa == SBR_ISA_SCALAR) return check_interleaved(k, true);
  check_matrices(k, Extent::kAll);
  check_up_down(k);
  for (size_t tokens : {17, 40, 133}) check_long_batch(k, tokens);
  for (size_t n : {1, 2, 15, 16, 17, 31, 32, 33, 64, 96, 128, 1536}) {
    for (Fill fill : kFills) check_vectors(k, n, fill);
  }
  for (size_t head_dim : {16, 32, 64, 80, 96, 100, 128, 256}) {
    for (size_t n_pos : {1, 2, 3, 5, 16, 32, 37, 100}) check_attention(k, head_dim, n_pos);
  }
}

#if defined(__x86_64__)
// What this CPU can show of instruction sets that it lacks; false: nothing.
bool check_unsupported(const Kernels& k) {
  if (k.isa == SBR_ISA_AVXVNNI && kernels_supported(kernels_for(SBR_ISA_AVX2))) {
    if (kernels_supported(kernels_for(SBR_ISA_AVX512VNNI))) {
      Kernels twin = k;
      twin.name = "avxvnni, EVEX";
      for (size_t type = 0; type < kWeightTypeSlots; ++type) {
        const WeightKernels& w = kAvxVnniTwin.weights[type];
        if (w.gemv) twin.weights[type] = {w.gemv, w.gather_gemv, w.gemm, twin.weights[type].axpy_rows};
      }
      check_matrices(twin, Extent::kAll);
      check_long_batch(twin, 40);
    }
    const missing_instructions::Emulation emulation;
    check_matrices(k, Extent::kSome);
    CHECK(missing_instructions::executed > 1000);
    return true;
  }
  if (k.isa == SBR_ISA_AMX && kernels_supported(kernels_for(SBR_ISA_AVX512VNNI))) {
    const missing_instructions::Emulation emulation;
    check_matrices(k, Extent::kSome);
    for (size_t tokens : {4, 17, 40, 133}) check_long_batch(k, tokens);
    CHECK(missing_instructions::executed > 1000);
    return true;
  }
  return false;
}
#else
bool check_unsupported(const Kernels&) { return false; }
#endif

}  // namespace

// With the name of an instruction set: only that one, whether or not this CPU has it. A CPU without it must then kill
// the program, which shows that a test run would notice kernels called without dispatch.
int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  check_dispatch();
  check_scalar_against_double();
  for (size_t i = 0; i < kernels_count(); ++i) {
    const Kernels& k = *kernels_at(i);
    if (!only.empty() && only != k.name) continue;
    if (only.empty() && !kernels_supported(&k)) {
      const bool emulated = check_unsupported(k);
      std::printf("%s: not supported by this CPU (needs %s)%s\n", k.name, kernels_requires(&k),
                  emulated ? "; its kernels ran with the missing instructions emulated" : "");
      continue;
    }
    std::printf("%s\n", k.name);
    std::fflush(stdout);
    check_all(k);
  }
  return check_result();
}
