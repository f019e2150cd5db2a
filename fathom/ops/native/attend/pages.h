// Pages of keys and values, as kernels see them; `ops/attend/pages.py` says the same to Python.
//
// A page holds P tokens of every key-value head. D is d rounded up to 16; what lies beyond d is never used.
//   fp32:          keys [pages, h, d, P],         values [pages, h, P, D]
//   bf16 and fp8:  keys [pages, h, d / 2, P, 2],  values [pages, h, P / 2, D, 2]
// so that a product's lanes are keys (scores) or the width (outputs), and a 32-bit lane of bf16 holds the two
// factors that `vdpbf16ps` sums. table [S, B] names the pages of each sequence in order, past [S] says how many
// tokens it held before the call's; the call's tokens lie at past[s] and after.
#pragma once

#include <stdexcept>
#include <string>

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// Tokens of history that are weighed together; a page divides it.
constexpr int64_t PIECE = 512;

// A number of fp8 E4M3 (no infinity; 0x7f is NaN).
struct fp8 {
  uint8_t bits;
};

template <>
inline fp8 narrow<fp8>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return fp8{uint8_t(sign | 0x7f)};
  float much = std::fabs(x);
  // below 2^-6 the step is 2^-9 throughout
  if (much < 0.015625f) return fp8{uint8_t(sign | uint32_t(std::nearbyintf(much * 512.0f)))};
  if (much >= 448.0f) return fp8{uint8_t(sign | 0x7e)};
  uint32_t rounded = (size + 0x7ffff + (size >> 20 & 1)) >> 20;
  return fp8{uint8_t(sign | (rounded - (120 << 3)))};
}

// A bf16 has room for every fp8.
inline bf16 wider(fp8 x) {
  constexpr uint16_t small[8] = {0, 118 << 7, 119 << 7, 0x3bc0, 120 << 7, 0x3c20, 0x3c40, 0x3c60};
  uint16_t size = x.bits & 0x7f, sign = uint16_t((x.bits & 0x80) << 8);
  if (size == 0x7f) return bf16{uint16_t(sign | 0x7fc0)};
  return bf16{uint16_t(sign | (size < 8 ? small[size] : (size << 4) + (120 << 7)))};
}

// n fp8 -> bf16; n is a multiple of 32.
inline void widen_all(const fp8* x, bf16* y, int64_t n) {
#if defined(__AVX512BW__)
  alignas(64) uint16_t below[32] = {0, 118 << 7, 119 << 7, 0x3bc0, 120 << 7, 0x3c20, 0x3c40, 0x3c60};
  const __m512i small = _mm512_load_si512(below);
  for (int64_t i = 0; i < n; i += 32) {
    __m512i c = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)));
    __m512i sign = _mm512_slli_epi16(_mm512_and_si512(c, _mm512_set1_epi16(0x80)), 8);
    __m512i size = _mm512_and_si512(c, _mm512_set1_epi16(0x7f));
    __m512i wide = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(120 << 7));
    wide = _mm512_mask_permutexvar_epi16(wide, _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8)), size, small);
    wide = _mm512_mask_blend_epi16(_mm512_cmpeq_epi16_mask(size, _mm512_set1_epi16(0x7f)), wide,
                                   _mm512_set1_epi16(0x7fc0));
    _mm512_storeu_si512(y + i, _mm512_or_si512(wide, sign));
  }
#else
  for (int64_t i = 0; i < n; i++) y[i] = wider(x[i]);
#endif
}

struct Pages {
  Address keys, values;
  const int32_t* table;    // [S, B]
  const int32_t* past;     // [S]
  const int32_t* offsets;  // [S + 1]: where each sequence's tokens begin in the call; null: `each` a sequence
  int64_t each, S, h, d, B, P, pages;
  int64_t D;

  Pages(Address keys, Address values, Address table, Address past, Address offsets, int64_t each, int64_t S, int64_t h,
        int64_t d, int64_t B, int64_t P, int64_t pages)
      : keys(keys), values(values), table(at<const int32_t>(table)), past(at<const int32_t>(past)),
        offsets(at<const int32_t>(offsets)), each(each), S(S), h(h), d(d), B(B), P(P), pages(pages),
        D((d + 15) / 16 * 16) {}

  int64_t begin(int64_t s) const { return offsets ? offsets[s] : s * each; }
  int64_t fresh(int64_t s) const { return begin(s + 1) - begin(s); }
  int64_t page(int64_t s, int64_t token) const { return table[s * B + token / P]; }

  template <class T>
  T* key_block(int64_t page, int64_t head) const {
    return at<T>(keys) + (page * h + head) * d * P;
  }
  template <class T>
  T* value_block(int64_t page, int64_t head) const {
    return at<T>(values) + (page * h + head) * P * D;
  }

  // Throw where a table names a page that is not there; pages from `from(s)` on are looked at.
  template <class F>
  void check(const char* what, const F& from) const {
    for (int64_t s = 0; s < S; s++) {
      int64_t end = past[s] + fresh(s), last = (end + P - 1) / P;
      if (past[s] < 0 || last > B)
        throw std::invalid_argument(std::string(what) + ": sequence " + std::to_string(s) + " needs " +
                                    std::to_string(last) + " pages, its row of table_SB has " + std::to_string(B) +
                                    ". Give the memory more room.");
      for (int64_t i = from(s) / P; i < last; i++) {
        int64_t page = table[s * B + i];
        if (page < 0 || page >= pages)
          throw std::invalid_argument(std::string(what) + ": table_SB names page " + std::to_string(page) +
                                      " for sequence " + std::to_string(s) + "; there are " + std::to_string(pages) +
                                      ". Name a page for every token.");
      }
    }
  }
};

}  // namespace FATHOM_TIER
