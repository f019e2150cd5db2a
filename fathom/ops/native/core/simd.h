// Vectors of fp32 of the width that this tier has, and the few operations kernels need on them.
//
// Promise: a kernel written with these is the same text for every tier; every operation rounds as
// IEEE says, so results differ between tiers only where a reduction's order depends on the width,
// or fma is one rounding (AVX2 and up, NEON) or two (portable x86). Loads of bf16 widen exactly,
// stores of bf16 round to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace FATHOM_TIER {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

// A bf16 number: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <class T>
inline T narrow(float x);

template <>
inline float narrow<float>(float x) {
  return x;
}

template <>
inline bf16 narrow<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bf16{uint16_t((bits >> 16) | 0x40)};
  return bf16{uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline vf splat(float x) { return x - vf{}; }

inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline float fma(float a, float b, float c) {
#if defined(__AVX2__) || defined(__ARM_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf load(const bf16* p) {
#if defined(__AVX512F__)
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__)
  __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
  typedef uint16_t quarter __attribute__((vector_size(2 * W)));
  quarter half;
  std::memcpy(&half, p, sizeof half);
  return vf(__builtin_convertvector(half, vu) << 16);
#endif
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &half, sizeof half);
#else
  vu bits = vu(v);
  vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vu nan = (bits >> 16) | 0x40;
  vu kept = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(__m512i(kept)));
#else
  typedef uint16_t quarter __attribute__((vector_size(2 * W)));
  quarter half = __builtin_convertvector(kept, quarter);
  std::memcpy(p, &half, sizeof half);
#endif
#endif
}

// The first n < W values; the others are zero.
template <class T>
inline vf load_some(const T* p, int n) {
  float held[W] = {};
  for (int i = 0; i < n; i++) held[i] = widen(p[i]);
  return load(held);
}

template <class T>
inline void store_some(T* p, vf v, int n) {
  T held[W];
  store(held, v);
  std::memcpy(p, held, n * sizeof(T));
}

// The first W or n values; n may be zero or less, then nothing is read.
template <class T>
inline vf load_upto(const T* p, int64_t n) {
  return n >= W ? load(p) : load_some(p, int(n));
}

template <class T>
inline void store_upto(T* p, vf v, int64_t n) {
  if (n >= W)
    store(p, v);
  else
    store_some(p, v, int(n));
}

// Sum of the lanes, always in the same order: halves added until one is left.
inline float sum(vf v) {
#if defined(__SSE2__)
#if defined(__AVX512F__)
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_maskz_extractf32x8_ps(0xff, v, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX2__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
  __m128 four = v;
#endif
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float held[W];
  store(held, v);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) held[i] += held[i + half];
  return held[0];
#endif
}

inline float max(vf v) {
  float most = v[0];
  for (int i = 1; i < W; i++) most = v[i] > most ? v[i] : most;
  return most;
}

inline vf sqrt(vf v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  vf y;
  for (int i = 0; i < W; i++) y[i] = std::sqrt(v[i]);
  return y;
#endif
}

inline vf round(vf v) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // adding 1.5 x 2^23 leaves the nearest integer; good for |v| < 2^22, which is all exp asks for
  const vf magic = splat(12582912.0f);
  return (v + magic) - magic;
#endif
}

// e^x to about one unit in the last place; 0 below -87.3, +inf above 88.7; NaN stays NaN.
inline vf exp(vf x) {
  const vf most = splat(88.72283f), least = splat(-87.33654f);
  vf y = min(max(x, least), most);
  vf n = round(y * splat(1.44269504f));
  vf r = fma(n, splat(-0.693359375f), y);
  r = fma(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  vi k = __builtin_convertvector(n, vi);
  // in two factors, because 2^128 is none
  vi half = k >> 1;
  p = p * vf((half + 127) << 23) * vf((k - half + 127) << 23);
  p = x < least ? vf{} : p;
  p = x > most ? splat(INFINITY) : p;
  return x == x ? p : x;
}

// Natural logarithm of positive normal numbers to about one unit in the last place.
inline vf log(vf x) {
  vi bits = vi(x);
  vi e = ((bits >> 23) & 255) - 126;
  vf m = vf((bits & 0x007fffff) | 0x3f000000);
  vi small = m < splat(0.707106781f);
  m = small ? m + m : m;
  e = e + small;
  m = m - splat(1.0f);
  vf z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  vf k = __builtin_convertvector(e, vf);
  vf y = m * z * p;
  y = fma(k, splat(-2.12194440e-4f), y);
  y = fma(splat(-0.5f), z, y);
  return fma(k, splat(0.693359375f), m + y);
}

inline vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

inline vf silu(vf x) { return x * sigmoid(x); }

// log(1 + e^x), without overflow and without losing small values: as torch, x itself above 20.
inline vf softplus(vf x) {
  vf t = exp(min(x, -x));  // e^-|x|
  vf u = splat(1.0f) + t;
  // log(1 + t) = log(u) t / (u - 1), which is exact where 1 + t rounds
  vf d = u - splat(1.0f);
  vf tail = d == vf{} ? t : log(u) * (t / (d == vf{} ? splat(1.0f) : d));
  vf y = max(x, vf{}) + tail;
  y = x > splat(20.0f) ? x : y;
  return x == x ? y : x;
}

}  // namespace FATHOM_TIER
