// A square piece of a matrix in fp32, as the quantisers look at it: B rows of B columns.
//
// Promise: rows and columns past the matrix are zeros and are never written.
#pragma once

#include <algorithm>

#include "core/tape.h"
#include "core/types.h"
#include "nvfp4/elements.h"

namespace FATHOM_TIER {

// The rows of a matrix, or of one made by taking rows of another: row r is row source[r], -1 being zeros.
template <class X>
struct Rows {
  const X* x;             // rows `stride` apart
  const int64_t* source;  // [R] or none: then row r is row r below T, and zeros from there on
  int64_t stride, T, C;

  const X* operator()(int64_t r) const {
    const int64_t found = source ? source[r] : r < T ? r : -1;
    return found < 0 ? nullptr : x + found * stride;
  }
};

template <int B>
struct Tile {
  static constexpr int V = B / W;  // vectors of a row
  vf x[B][V];

  // Columns from c on of B rows.
  template <class X>
  void load(const X* const rows[B], int64_t c, int64_t C) {
    for (int r = 0; r < B; r++)
      for (int k = 0; k < V; k++)
        x[r][k] = rows[r] ? load_upto(rows[r] + c + k * W, C - c - k * W) : vf{};
  }

  // The random Hadamard transform along the rows, B = 16: signs, butterflies, a quarter; rounded to bf16 if asked.
  void transform(bool rounds) {
    constexpr bool FLIPPED[16] = {0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1};
    for (int k = 0; k < V; k++) {
      vf y[16];
      for (int r = 0; r < 16; r++) y[r] = FLIPPED[r] ? -x[r][k] : x[r][k];
#pragma GCC unroll 4
      for (int half = 1; half < 16; half *= 2)
#pragma GCC unroll 8
        for (int pair = 0; pair < 8; pair++) {
          const int r = pair / half * 2 * half + pair % half;
          const vf a = y[r], b = y[r + half];
          y[r] = a + b, y[r + half] = a - b;
        }
      for (int r = 0; r < 16; r++) {
        x[r][k] = y[r] * splat(0.25f);
        if (rounds) x[r][k] = rounded_to_bf16(x[r][k]);
      }
    }
  }

  // The largest magnitude of each row, and of each column. NaN counts as the largest.
  void row_peaks(float peaks[B]) const {
    for (int r = 0; r < B; r++) {
      vi most = vi(x[r][0]) & 0x7fffffff;
      for (int k = 1; k < V; k++) most = larger(most, vi(x[r][k]) & 0x7fffffff);
      peaks[r] = across(most);
    }
  }
  void column_peaks(vf peaks[V]) const {
    for (int k = 0; k < V; k++) {
      vi most = vi(x[0][k]) & 0x7fffffff;
      for (int r = 1; r < B; r++) most = larger(most, vi(x[r][k]) & 0x7fffffff);
      peaks[k] = vf(most);
    }
  }

  static vi larger(vi a, vi b) { return a > b ? a : b; }

  static vf rounded_to_bf16(vf x) {
    const vu bits = vu(x);
    return vf((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
  }

  // The largest lane of magnitudes given as bits.
  static float across(vi v) {
    int32_t most;
#if defined(__AVX512F__)
    most = _mm512_reduce_max_epi32(__m512i(v));
#elif defined(__AVX2__)
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(__m256i(v)), _mm256_extracti128_si256(__m256i(v), 1));
    __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    most = _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
#else
    most = v[0];
    for (int i = 1; i < W; i++) most = std::max(most, v[i]);
#endif
    float found;
    std::memcpy(&found, &most, 4);
    return found;
  }
};

// Where a copy of the matrix is written: a number type and rows C apart.
struct Out {
  Address to;
  int type;
  int64_t C;

  template <class Y>
  void put(int64_t r, int64_t c, vf value) const {
    store_upto(at<Y>(to) + r * C + c, value, std::max<int64_t>(0, C - c));
  }
};

}  // namespace FATHOM_TIER
