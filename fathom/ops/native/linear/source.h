// Where a product's weights come from: panels of each format, as vectors of one output a lane.
//
// A source serves an arithmetic: `Wide` multiplies fp32 (every tier), `Pairs` bf16 pairs (tiers with BF16
// instructions), `Quads` four int8 at a time. `SCALED` sources have a scale for every block and output, by which a
// block's sum is multiplied before it is added, in units of 1 / SCALE_UNIT. `lanes(b, half, g)` prepares 8 columns of W
// outputs; `part(l, p)` gives those of step p, of which 8 columns have A::STEPS. Where a panel's values lie is a base
// that sources of several arithmetics share.
#pragma once

#include "linear/format.h"

namespace FATHOM_TIER {

// Arithmetic in fp32.
struct Wide {
  using X = float;
  using Part = Two;
  using Sum = vf;
  static constexpr int STEPS = 4;
  static inline vf start(const float*, int64_t, int64_t) { return vf{}; }
  static inline vf real(vf sum) { return sum; }
  static inline vf finish(vf sum, const float*, int64_t) { return sum; }
  static inline Two spread(const float* x) { return {splat(x[0]), splat(x[1])}; }
  static inline vf add(vf sum, const Two& w, const Two& x) { return fma(w.odd, x.odd, fma(w.even, x.even, sum)); }
};

inline Two widen_pairs(vu lanes) { return Two{vf(lanes << 16), vf(lanes & 0xffff0000u)}; }

inline vu load_lanes(const void* p) {
  vu v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Values that stand for themselves.
struct Unscaled {
  static constexpr bool SCALED = false;
  inline vf scale(int64_t, int) const { return vf{}; }
};

// [blocks][16 k][32 o]
struct Singles : Unscaled {
  const float* panel;
  struct Lanes {
    const float* p;
  };
  explicit Singles(const float* panel) : panel(panel) {}
  inline Lanes lanes(int64_t b, int half, int g) const { return {panel + (b * BLOCK + half * 8) * PANEL + g * W}; }
};

// [blocks][8 pairs of k][32 o][2]
template <class T>
struct Paired : Unscaled {
  const T* panel;
  struct Lanes {
    const T* p;
  };
  explicit Paired(const T* panel) : panel(panel) {}
  inline Lanes lanes(int64_t b, int half, int g) const { return {panel + (b * 8 + half * 4) * 2 * PANEL + 2 * g * W}; }
};

// Nibbles [blocks][2][32 o], and e4m3 scales [blocks][32 o].
struct Nibbles {
  static constexpr bool SCALED = true;
  const uint32_t* panel;
  const uint8_t* scales;
  struct Lanes {
    vu v;
  };
  Nibbles(const uint32_t* panel, const uint8_t* scales) : panel(panel), scales(scales) {}
  inline Lanes lanes(int64_t b, int half, int g) const {
    const uint32_t* p = panel + (b * 2 + half) * PANEL + g * W;
    ask_ahead(p);
    return {load_lanes(p)};
  }
  inline vf scale(int64_t b, int g) const { return widen_scale(scales + b * PANEL + g * W); }
};

// A source of scaled codes that were widened before: its values plain, its scales fp32 [blocks][32 o].
template <class Plain>
struct Decoded : Plain {
  static constexpr bool SCALED = true;
  const float* scales;
  Decoded(const typename Plain::Arithmetic::X* panel, const float* scales) : Plain(panel), scales(scales) {}
  inline vf scale(int64_t b, int g) const { return load(scales + b * PANEL + g * W); }
};

struct WideFp32 : Singles {
  using Arithmetic = Wide;
  using Singles::Singles;
  static inline Two part(const Lanes& l, int p) { return {load(l.p + 2 * p * PANEL), load(l.p + (2 * p + 1) * PANEL)}; }
};

struct WideBf16 : Paired<bf16> {
  using Arithmetic = Wide;
  using Paired::Paired;
  static inline Two part(const Lanes& l, int p) { return widen_pairs(load_lanes(l.p + 2 * p * PANEL)); }
};

struct WideFp8 : Paired<uint8_t> {
  using Arithmetic = Wide;
  using Paired::Paired;
  static inline Two part(const Lanes& l, int p) { return widen_e4m3_pairs(l.p + 2 * p * PANEL); }
};

// Sixteen (or eight, with the sign apart) values looked up by the low bits of each lane.
inline vf e2m1_of(vu lanes) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(__m512i(lanes), _mm512_loadu_ps(E2M1));
#elif defined(__AVX2__)
  __m256 magnitude = _mm256_permutevar8x32_ps(_mm256_loadu_ps(E2M1), __m256i(lanes));
  return vf(vu(magnitude) | ((lanes << 28) & 0x80000000u));
#else
  vf y;
  for (int i = 0; i < W; i++) y[i] = E2M1[lanes[i] & 15];
  return y;
#endif
}

struct WideNvfp4 : Nibbles {
  using Arithmetic = Wide;
  using Nibbles::Nibbles;
  static inline Two part(const Lanes& l, int p) { return {e2m1_of(l.v >> (4 * p)), e2m1_of(l.v >> (16 + 4 * p))}; }
};

#if defined(__AVX512BF16__)
// Arithmetic by BF16 instructions: two products a lane, sums in fp32.
struct Pairs {
  using X = bf16;
  using Part = __m512i;
  using Sum = vf;
  static constexpr int STEPS = 4;
  static inline vf start(const bf16*, int64_t, int64_t) { return vf{}; }
  static inline vf real(vf sum) { return sum; }
  static inline vf finish(vf sum, const bf16*, int64_t) { return sum; }
  static inline __m512i spread(const bf16* x) {
    int32_t both;
    std::memcpy(&both, x, 4);
    return _mm512_set1_epi32(both);
  }
  static inline vf add(vf sum, __m512i w, __m512i x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
};

struct PairsBf16 : Paired<bf16> {
  using Arithmetic = Pairs;
  using Paired::Paired;
  static inline __m512i part(const Lanes& l, int p) { return __m512i(load_lanes(l.p + 2 * p * PANEL)); }
};

// 32 e4m3 codes without NaN -> bf16, exactly.
inline __m512i bf16_of_e4m3(const uint8_t* p) {
  alignas(64) static constexpr uint16_t SMALL[32] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60,
                                                     0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60,
                                                     0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60,
                                                     0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  __m512i rest = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
  __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(rest, 4), _mm512_set1_epi16(120 << 7));
  __mmask32 tiny = _mm512_cmplt_epu16_mask(rest, _mm512_set1_epi16(8));
  __m512i value = _mm512_mask_permutexvar_epi16(normal, tiny, rest, _mm512_load_si512(SMALL));
  __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8);
  return _mm512_or_si512(value, sign);
}

struct PairsFp8 : Paired<uint8_t> {
  using Arithmetic = Pairs;
  using Paired::Paired;
  static inline __m512i part(const Lanes& l, int p) { return bf16_of_e4m3(l.p + 2 * p * PANEL); }
};

alignas(64) constexpr uint16_t E2M1_BF16[32] = {
    0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
    0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};

struct PairsNvfp4 : Nibbles {
  using Arithmetic = Pairs;
  using Nibbles::Nibbles;
  static inline __m512i part(const Lanes& l, int p) {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(__m512i(l.v), 4 * p), _mm512_load_si512(E2M1_BF16));
  }
};
#endif

// Arithmetic in int8: weights as twice their e2m1 value plus 12 (0 to 24), rows as whole numbers from -127 to 127 in
// the order of the nibbles. A row of `blocks` blocks is [16 blocks] int8, then for each block -12 times its sum (int32), then its
// scale (float), by which the result is multiplied; half of it makes up for the doubled weights.
struct Quads {
  using X = int8_t;
  using Part = vi;
  using Sum = vi;
  static constexpr int STEPS = 2;
  static inline const int32_t* corrections(const int8_t* x, int64_t blocks) {
    return reinterpret_cast<const int32_t*>(x + blocks * BLOCK);
  }
  static inline vi start(const int8_t* x, int64_t blocks, int64_t b) { return corrections(x, blocks)[b] - vi{}; }
  static inline vf real(vi sum) { return __builtin_convertvector(sum, vf); }
  static inline vf finish(vf sum, const int8_t* x, int64_t blocks) {
    float scale;
    std::memcpy(&scale, corrections(x, blocks) + blocks, 4);
    return sum * splat(scale);
  }
  static inline vi spread(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return four - vi{};
  }
  static inline vi add(vi sum, vi w, vi x) {
#if defined(__AVX512VNNI__)
    return vi(_mm512_dpbusd_epi32(__m512i(sum), __m512i(w), __m512i(x)));
#elif defined(__AVX2__)
    __m256i pairs = _mm256_maddubs_epi16(__m256i(w), __m256i(x));
    return sum + vi(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    for (int i = 0; i < 4; i++) sum += ((w >> (8 * i)) & 255) * ((x << (24 - 8 * i)) >> 24);
    return sum;
#endif
  }
};

inline vi doubled_e2m1(vi nibbles) {
  alignas(16) static constexpr uint8_t TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
#if defined(__AVX512F__)
  __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(TABLE)));
  return vi(_mm512_shuffle_epi8(table, __m512i(nibbles)));
#elif defined(__AVX2__)
  __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(TABLE)));
  return vi(_mm256_shuffle_epi8(table, __m256i(nibbles)));
#else
  uint8_t bytes[4 * W];
  std::memcpy(bytes, &nibbles, sizeof bytes);
  for (uint8_t& byte : bytes) byte = TABLE[byte & 15];
  std::memcpy(&nibbles, bytes, sizeof bytes);
  return nibbles;
#endif
}

struct QuadsNvfp4 : Nibbles {
  using Arithmetic = Quads;
  using Nibbles::Nibbles;
  static inline vi part(const Lanes& l, int p) { return doubled_e2m1(vi((l.v >> (4 * p)) & 0x0f0f0f0fu)); }
};

// Codes that were doubled before: [blocks][4 quads][32 o][4] bytes.
struct QuadsBytes : Unscaled {
  using Arithmetic = Quads;
  const int8_t* panel;
  struct Lanes {
    const int8_t* p;
  };
  explicit QuadsBytes(const int8_t* panel) : panel(panel) {}
  inline Lanes lanes(int64_t b, int half, int g) const { return {panel + ((b * 4 + half * 2) * PANEL + g * W) * 4}; }
  static inline vi part(const Lanes& l, int p) { return vi(load_lanes(l.p + p * PANEL * 4)); }
};

}  // namespace FATHOM_TIER
