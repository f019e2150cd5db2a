// States kept in fp16: how they are read, and how new ones are rounded by chance.
//
// Promise: a new state goes up or down with a probability that makes its mean exact; what fp16 can hold stays
// as it is, and what is beyond its range becomes its greatest number, 65504. The random number follows from the
// layer's seed, the token's position in its sequence and the state's own place, so nothing else decides a bit.
// Each is the sum of a hash of its row (head and channel) and a hash of its column, made anew for every token:
// those of any two states are independent, for the price of an addition. States in fp32 pass unchanged, and what
// would round them is compiled away. The same in plain PyTorch is fathom/ops/ssd/rounding.py.
#pragma once

#include <type_traits>

#include "core/simd.h"
#include "core/tape.h"

namespace FATHOM_TIER {

// A number of 5 exponent and 10 mantissa bits.
struct fp16 {
  uint16_t bits;
};

// W numbers in fp16. `widen` is exact; `truncate` cuts the magnitude, to 65504 where it is more; NaN stays.
#if defined(__AVX512F__)
typedef __m256i vh;
inline vf widen(vh half) { return _mm512_cvtph_ps(half); }
inline vh truncate(vf x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_ZERO); }
#elif defined(__AVX2__)
typedef __m128i vh;
inline vf widen(vh half) { return _mm256_cvtph_ps(half); }
inline vh truncate(vf x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_ZERO); }
#else
typedef uint16_t vh __attribute__((vector_size(2 * W)));

inline vf widen(vh half) {
  vi bits = __builtin_convertvector(half, vi), size = bits & 0x7fff;
  // a number below fp16's normal range is a multiple of 2^-24; as bits of fp32 it might count as zero
  vi small = vi(__builtin_convertvector(size, vf) * splat(0x1p-24f)), whole = (size << 13) + (112 << 23);
  whole = size < 0x400 ? small : whole;
  whole = size < 0x7c00 ? whole : (size << 13) | 0x7f800000;
  return vf(whole | vi(vu(bits & 0x8000) << 16));
}

inline vh truncate(vf x) {
  vi bits = vi(x), size = bits & 0x7fffffff, most = vi(splat(65504.0f));
  vi nan = (size > 0x7f800000) & 0x7e00;
  size = size > most ? most : size;
  vi small = __builtin_convertvector(vf(size) * splat(0x1p24f), vi), half = (size >> 13) - (112 << 10);
  half = size < 113 << 23 ? small : half;
  return __builtin_convertvector(half | nan | ((bits >> 16) & 0x8000), vh);
}
#endif

inline vf load(const fp16* p) {
  vh half;
  std::memcpy(&half, p, sizeof half);
  return widen(half);
}

inline void store(fp16* p, vf x) {
  vh half = truncate(x);
  std::memcpy(p, &half, sizeof half);
}

inline float widen(fp16 x) {
  fp16 several[W] = {x};
  return load(several)[0];
}

// Call f with a null pointer of the states' type: fp16 where there are pasts to round them by.
template <class F>
inline void with_state(Address past, const F& f) {
  if (past)
    f(static_cast<fp16*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}

template <class U>
inline U mix(U x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  return (x ^ (x >> 15)) * 0x846ca68bu;
}

inline vu lanes() {
  vu n;
  for (int i = 0; i < W; i++) n[i] = uint32_t(i);
  return n;
}

// What the states of one token in one layer are rounded by; past is int32 [S], `place` counts from the call's first.
inline uint32_t token_seed(Address past, uint32_t seed, int64_t s, int64_t place) {
  return mix(mix(seed) + uint32_t(at<int32_t>(past)[s] + place));
}

// Of W rows of states, from the row h P + p on.
inline vu row_seeds(uint32_t token, int64_t row) { return mix(vu{} + (token + uint32_t(row)) + lanes()); }

// Of N columns, and more up to a whole vector.
inline void column_seeds(uint32_t token, int64_t N, uint32_t* columns) {
  const vu first = vu{} + mix(token + 0x9e3779b9u) + lanes();
  for (int64_t n = 0; n < N; n += W) {
    vu own = mix(first + uint32_t(n));
    std::memcpy(columns + n, &own, sizeof own);
  }
}

// What cut to the states' type is the rounded state. `row` and `columns` are the seeds of this vector.
template <class Z>
inline vf dithered(vf x, uint32_t row, const uint32_t* columns) {
  if constexpr (std::is_same_v<Z, float>) return x;
  vu own;
  std::memcpy(&own, columns, sizeof own);
  const vi bits = vi(x), least = vi(splat(0x1p-14f));
  vi size = bits & 0x7f800000;
  size = size > least ? size : least;
  // 1 and 1 + u times the power of two at or below x, u of 13 bits: u times the distance of x's neighbours is added
  const vi one = size | (bits & vi(splat(-0.0f))), more = one | vi((own + row) & 0x007ffc00);
  return fma(vf(more) - vf(one), splat(0x1p-10f), x);
}

// What a state is once it was stored and is read again.
template <class Z>
inline vf kept(vf x, uint32_t row, const uint32_t* columns) {
  if constexpr (std::is_same_v<Z, float>) return x;
  return widen(truncate(dithered<fp16>(x, row, columns)));
}

}  // namespace FATHOM_TIER
