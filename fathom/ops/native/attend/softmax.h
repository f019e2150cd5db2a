// The softmax of a piece of a row, and how pieces become one.
//
// Promise: all in powers of two (scores times log2 e), so that a piece is a maximum m, a sum l of 2^(s - m), and
// weights; pieces are merged in order, the first as it is.
#pragma once

#include "core/simd.h"

namespace FATHOM_TIER {

constexpr float LOG2_E = 1.44269504088896f;

// 2^x for x up to 127, to about one unit in the last place; 0 below -126; NaN stays NaN.
inline vf exp2(vf x) {
#if defined(__AVX512F__)
  // the scaling underflows to zero by itself
  vf f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n = round(x);
#else
  const vf least = splat(-126.0f);
  vf y = x < least ? least : x;
  vf n = round(y), f = y - n;
#endif
  vf p = splat(1.5403530e-4f);
  p = fma(p, f, splat(1.3333558e-3f));
  p = fma(p, f, splat(9.6181291e-3f));
  p = fma(p, f, splat(5.5504109e-2f));
  p = fma(p, f, splat(2.4022651e-1f));
  p = fma(p, f, splat(6.9314718e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  p = p * vf((__builtin_convertvector(n, vi) + 127) << 23);
  return x < least ? vf{} : p;
#endif
}

inline float exp2_of(float x) { return exp2(splat(x))[0]; }

// Lane numbers, 0 to W - 1.
inline vi lanes() {
  vi v;
  for (int i = 0; i < W; i++) v[i] = i;
  return v;
}

inline vi first(int64_t n) { return lanes() < int32_t(n < W ? n : W); }

// Scores [n of wide] -> weights [wide], 2^(score times c - m), the ones after n zero; m and l of the piece.
template <class P>
inline void weigh(const float* score, int64_t n, int64_t wide, float c, P* weight, float& m, float& l) {
  vf most = splat(-INFINITY);
  int64_t j = 0;
  for (; j + W <= n; j += W) most = max(load(score + j), most);
  if (j < n) most = max(first(n - j) ? load(score + j) : splat(-INFINITY), most);
  m = max(most) * c;
  vf total{};
  for (j = 0; j + W <= n; j += W) {
    vf p = exp2(fma(load(score + j), splat(c), splat(-m)));
    total = total + p;
    store(weight + j, p);
  }
  for (; j < wide; j += W) {
    vf p = first(n - j) ? exp2(fma(load(score + j), splat(c), splat(-m))) : vf{};
    total = total + p;
    store(weight + j, p);
  }
  l = sum(total);
}

// What is known of a row so far, (m, l, o [D]), with what another piece (m2, l2, o2 [D]) adds.
inline void merge(float& m, float& l, float* o, float m2, float l2, const float* o2, int64_t D) {
  if (m == -INFINITY) {
    m = m2;
    l = l2;
    std::memcpy(o, o2, D * sizeof(float));
    return;
  }
  float most = m2 > m ? m2 : m;
  float a = exp2_of(m - most), b = exp2_of(m2 - most);
  m = most;
  l = l * a + l2 * b;
  for (int64_t i = 0; i < D; i += W) store(o + i, fma(load(o2 + i), splat(b), load(o + i) * splat(a)));
}

}  // namespace FATHOM_TIER
