// Philox 4x32 with seven rounds: random words as a function of a key and a place.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); seven rounds pass their tests.
#pragma once

#include "core/simd.h"

namespace FATHOM_TIER {

// The words of a place that all elements of a matrix share, and the key.
struct Stream {
  uint32_t step, place;
  uint64_t seed;
};

typedef uint64_t vw __attribute__((vector_size(4 * W)));

// Products of the lower 32 bits of each lane with b.
inline vw product(vw a, uint32_t b) {
#if defined(__AVX512F__)
  return vw(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return vw(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
  return vw(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(b)));
#else
  return (a & 0xffffffffu) * b;
#endif
}

// Four words for every second one of W columns, in the lower bits of W / 2 lanes.
inline void philox_half(const Stream& stream, vw columns, uint32_t four, vw words[4]) {
  vw a = columns, b = vw{} + four, c = vw{} + stream.step, d = vw{} + stream.place;
  uint32_t left = uint32_t(stream.seed), right = uint32_t(stream.seed >> 32);
#pragma GCC unroll 7
  for (int round = 0; round < 7; round++) {
    const vw first = product(a, 0xD2511F53u), second = product(c, 0xCD9E8D57u);
    a = (second >> 32) ^ b ^ uint64_t(left);
    b = second;
    c = (first >> 32) ^ d ^ uint64_t(right);
    d = first;
    left += 0x9E3779B9u, right += 0xBB67AE85u;
  }
  words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// Four words for each of W columns from `column` on, for the rows 4 four .. 4 four + 3.
inline void philox(const Stream& stream, uint32_t column, uint32_t four, vu words[4]) {
  vw even, first[4], second[4];
  for (int i = 0; i < W / 2; i++) even[i] = uint64_t(2 * i);
  even += uint64_t(column);
  philox_half(stream, even, four, first);
  philox_half(stream, even + 1, four, second);
  for (int i = 0; i < 4; i++) words[i] = vu((first[i] & 0xffffffffu) | (second[i] << 32));
}

}  // namespace FATHOM_TIER
