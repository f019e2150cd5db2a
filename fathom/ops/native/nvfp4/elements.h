// How a number becomes one of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6) or of E4M3, and block scales.
//
// Promise: every operation is one fp32 rounding, in the order of ops/nvfp4/README.md, so all tiers give the bits
// of the reference in Python.
#pragma once

#include <cfloat>

#include "core/simd.h"

namespace FATHOM_TIER {

// Numbers below the normal range keep their digits while one of these lives: the factor of a matrix whose numbers
// are tiny lies there.
class KeepDenormals {
 public:
#if defined(__SSE2__)
  KeepDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  KeepDenormals() {}
  ~KeepDenormals() {}
#endif
};

constexpr float WHOLE = 12582912.0f;  // 1.5 x 2^23: adding and taking it away again rounds to whole numbers

inline vf magnitude(vf x) { return vf(vi(x) & 0x7fffffff); }
inline vf with_sign_of(vf size, vf x) { return vf(vi(size) | (vi(x) & int32_t(0x80000000))); }

// The steps of E2M1's grid at sizes from 0 to 6.
inline vf step_e2m1(vf size) {
  return size < splat(2.0f) ? splat(0.5f) : size < splat(4.0f) ? splat(1.0f) : splat(2.0f);
}

// To nearest, ties to the even code.
inline vf nearest_e2m1(vf size) {
  const vf whole = step_e2m1(size) * splat(WHOLE);
  return (size + whole) - whole;
}

// Up with a probability of the distance to the number below, in 2^-24; a number of the grid stays.
inline vf stochastic_e2m1(vf size, vu random) {
  const vf step = step_e2m1(size);
  const vf inverse = size < splat(2.0f) ? splat(2.0f) : size < splat(4.0f) ? splat(1.0f) : splat(0.5f);
  const vf t = size * inverse;
  const vf below = __builtin_convertvector(__builtin_convertvector(t, vi), vf);
  const vf u = __builtin_convertvector(vi(random >> 8), vf);
  return (u < (t - below) * splat(16777216.0f) ? below + splat(1.0f) : below) * step;
}

// To nearest, ties to even, for sizes from 0 to 448.
inline vf nearest_e4m3(vf size) {
  const vf power = max(vf(vi(size) & 0x7f800000), splat(0.015625f));
  const vf whole = power * splat(WHOLE / 8);
  return (size + whole) - whole;
}

// What block scales need to know of their matrix: S = min(2688 / A, largest float), 1 where A is 0.
struct Factor {
  float sixth, inverse;  // S x (1/6) and 1 / S

  explicit Factor(float amax) {
    const float most = 2688.0f / amax;
    const float factor = amax == 0 ? 1.0f : most > FLT_MAX ? FLT_MAX : most;
    sixth = factor * float(1.0 / 6.0);
    inverse = 1.0f / factor;
  }
};

// The scales of blocks with these largest magnitudes, and what their values are multiplied by.
inline void scale_blocks(vf peaks, const Factor& factor, vf& scale, vf& encode) {
  scale = nearest_e4m3(min(peaks * splat(factor.sixth), splat(448.0f)));
  encode = min(splat(1.0f) / (scale * splat(factor.inverse)), splat(FLT_MAX));
}

}  // namespace FATHOM_TIER
