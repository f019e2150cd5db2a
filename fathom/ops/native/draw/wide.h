// Vectors of fp64, half as many lanes as fp32 has: what shares are computed in.
//
// Promise: `exp` of numbers from -700 to 0 is right to about one unit in the last place; below it is 0.
#pragma once

#include "core/simd.h"

namespace FATHOM_TIER {

typedef double vd __attribute__((vector_size(4 * W)));
typedef int64_t vl __attribute__((vector_size(4 * W)));
typedef float vh __attribute__((vector_size(2 * W)));

inline vd all(double x) { return x - vd{}; }

// The lanes of a vector from the first (half = 0) or the middle one (half = 1) on.
template <int half>
inline vd widened(vf x) {
  vh part;
  std::memcpy(&part, reinterpret_cast<const char*>(&x) + half * sizeof part, sizeof part);
  return __builtin_convertvector(part, vd);
}

inline void store(double* p, vd v) { std::memcpy(p, &v, sizeof v); }

inline double sum(vd v) {
  double total = 0;
  for (int i = 0; i < W / 2; i++) total += v[i];
  return total;
}

inline vd fma(vd a, vd b, vd c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// One over the factorials from 12 down to 0: Taylor's series is exact enough within half of log 2.
constexpr double FACTORS[] = {2.08767569878681e-9,     2.505210838544172e-8, 2.7557319223985893e-7,
                              2.7557319223985893e-6,   2.48015873015873e-5,  1.984126984126984e-4,
                              1.3888888888888889e-3,   8.333333333333333e-3, 4.1666666666666664e-2,
                              1.6666666666666666e-1, 0.5,                  1.0,
                              1.0};

inline vd exp(vd x) {
  const vd least = all(-700.0);
  // adding 1.5 x 2^52 leaves the nearest integer, which then stands in the lowest bits as well
  const vd magic = all(6755399441055744.0);
  vd y = x < least ? least : x;
  vd t = fma(y, all(1.4426950408889634), magic), n = t - magic;
  vd r = fma(n, all(-6.93147180369123816490e-1), y);
  r = fma(n, all(-1.90821492927058770002e-10), r);
  vd p = all(1.6059043836821613e-10);
#pragma GCC unroll 16
  for (double factor : FACTORS) p = fma(p, r, all(factor));
  vd scaled = vd(vl(p) + (vl(t) << 52));
  return x < least ? vd{} : scaled;
}

}  // namespace FATHOM_TIER
