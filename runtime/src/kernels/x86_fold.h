// The last steps of rule 5's fold for four sums at once: lanes 2 apart, then 1 apart.
#pragma once

#include <immintrin.h>

namespace sbr {
namespace {

// {sum of a, sum of b, sum of c, sum of d}
__m128 fold4x4(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}

float fold4(__m128 a) {
  const __m128 pair = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

}  // namespace
}  // namespace sbr
