// How weights are laid out for products, and how each stored format becomes numbers again.
//
// A matrix [O, I] is cut into panels of 32 rows (outputs) and blocks of 16 columns (K). A panel lies in one
// piece, its blocks one after the other, and inside a block every 32-bit lane belongs to one output, so a
// product never moves values across lanes:
//   fp32   [16 k][32 o] float
//   bf16   [8 pairs of k][32 o][2] bf16
//   fp8    [8 pairs of k][32 o][2] e4m3
//   nvfp4  [2 halves of 8 k][32 o] uint32, nibble p of a lane's lower half is k = 2p, of its upper half k = 2p + 1;
//          after all blocks of the panel their scales [blocks][32 o] e4m3
// Rows and columns that the matrix does not have are zero.
#pragma once

#include <cstdint>

#include "core/simd.h"
#include "core/tape.h"

namespace FATHOM_TIER {

enum class Format : int { fp32 = 0, bf16 = 1, fp8 = 2, nvfp4 = 3 };

constexpr int PANEL = 32;
constexpr int BLOCK = 16;
constexpr int VECTORS = PANEL / W;

inline int64_t blocks_of(int64_t columns) { return (columns + BLOCK - 1) / BLOCK; }
inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

inline int64_t block_bytes(Format format) {
  switch (format) {
    case Format::fp32: return 2048;
    case Format::bf16: return 1024;
    case Format::fp8: return 512;
    default: return 256;
  }
}

inline int64_t panel_bytes(Format format, int64_t columns) {
  int64_t blocks = blocks_of(columns);
  int64_t bytes = blocks * (block_bytes(format) + (format == Format::nvfp4 ? PANEL : 0));
  return (bytes + 63) / 64 * 64;
}

// The values of e2m1's sixteen codes.
constexpr float E2M1[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

inline float e4m3(uint8_t code) {
  int exponent = (code >> 3) & 15, mantissa = code & 7;
  float value = exponent ? std::ldexp(1.0f + float(mantissa) / 8.0f, exponent - 7) : std::ldexp(float(mantissa), -9);
  return code & 128 ? -value : value;
}

struct Two {
  vf even, odd;
};

// Weights that are read once come from memory a line at a time; asking this many bytes ahead hides what a page's end costs.
constexpr int64_t AHEAD = 4096;

inline void ask_ahead(const void* p) { __builtin_prefetch(static_cast<const uint8_t*>(p) + AHEAD, 0, 2); }

// Block scales are not negative: e4m3 without its sign, times 2^-8 (`SCALE_UNIT` makes up for it), exactly.
constexpr float SCALE_UNIT = 256.0f;

inline vf widen_scale(const uint8_t* p) {
#if defined(__AVX512F__)
  __m256i half = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(_mm256_slli_epi16(half, 7));
#elif defined(__AVX2__)
  __m128i half = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtph_ps(_mm_slli_epi16(half, 7));
#else
  vf y;
  for (int i = 0; i < W; i++) y[i] = e4m3(p[i]) / SCALE_UNIT;
  return y;
#endif
}

// e4m3 codes without NaN -> fp32, exactly: the half-precision number with the same bits, moved up, is 2^-8 of it.
#if defined(__AVX512F__)
inline vf widen_e4m3_words(__m256i codes) {
  __m256i sign = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(128)), 8);
  __m256i rest = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(127)), 7);
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)), _mm512_set1_ps(256.0f));
}

inline vf widen_e4m3(const uint8_t* p) {
  return widen_e4m3_words(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// The codes of even and of odd places.
inline Two widen_e4m3_pairs(const uint8_t* p) {
  __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {widen_e4m3_words(_mm256_and_si256(both, _mm256_set1_epi16(255))), widen_e4m3_words(_mm256_srli_epi16(both, 8))};
}
#elif defined(__AVX2__)
inline vf widen_e4m3_words(__m128i codes) {
  __m128i sign = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(128)), 8);
  __m128i rest = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(127)), 7);
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), _mm256_set1_ps(256.0f));
}

inline vf widen_e4m3(const uint8_t* p) {
  return widen_e4m3_words(_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline Two widen_e4m3_pairs(const uint8_t* p) {
  __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {widen_e4m3_words(_mm_and_si128(both, _mm_set1_epi16(255))), widen_e4m3_words(_mm_srli_epi16(both, 8))};
}
#else
inline vf widen_e4m3(const uint8_t* p) {
  vf y;
  for (int i = 0; i < W; i++) y[i] = e4m3(p[i]);
  return y;
}

inline Two widen_e4m3_pairs(const uint8_t* p) {
  Two y;
  for (int i = 0; i < W; i++) y.even[i] = e4m3(p[2 * i]), y.odd[i] = e4m3(p[2 * i + 1]);
  return y;
}
#endif

}  // namespace FATHOM_TIER
