// A matrix as operands of products in four bits: rows for one product, columns for another.
//
// Promise: two passes over the matrix, the first for the largest magnitudes, the second for the values; sixteen rows
// are one thread's work, and their result does not depend on who is beside them but through the largest magnitude.
#include "core/parallel.h"
#include "core/scratch.h"
#include "nvfp4/nvfp4.h"
#include "nvfp4/philox.h"
#include "nvfp4/tile.h"

namespace FATHOM_TIER {

namespace {

constexpr int B = 16;
using Square = Tile<B>;

template <class X>
struct Job {
  Rows<X> from;
  int64_t R, blocks;  // rows, and blocks of B columns
  const int32_t* group;
  Out rows, columns;
  int rows_wishes, columns_wishes;
  Stream stream;
  float *row_peaks, *column_peaks;  // [R, blocks] and [R / B, B blocks]
  float *row_most, *column_most;    // [R / B]
  const float* amax;                // [2, G]
  int64_t G;

  void look(int64_t b) const;
  void make(int64_t b) const;

 private:
  void pointers(int64_t b, const X* found[B]) const {
    for (int r = 0; r < B; r++) found[r] = from(b * B + r);
  }
  template <class Y, bool LOT>
  void make_rows(const Square& tile, int64_t b, int64_t block, const float* scales, const float* encodes) const;
  template <class Y, bool LOT>
  void make_columns(const Square& tile, int64_t b, int64_t block, const Factor& factor) const;
};

float most_of(const float* peaks, int64_t n) {
  vi most{};
  for (int64_t i = 0; i < n; i += W) most = Square::larger(most, vi(load(peaks + i)));
  return Square::across(most);
}

// The largest magnitudes of 16 rows.
template <class X>
void Job<X>::look(int64_t b) const {
  const X* found[B];
  pointers(b, found);
  float* own_rows = row_peaks + b * B * blocks;
  float* own_columns = column_peaks + b * B * blocks;
  Square tile;
  for (int64_t block = 0; block < blocks; block++) {
    tile.load(found, block * B, from.C);
    if (rows.to) {
      float peaks[B];
      tile.row_peaks(peaks);
      if (rows_wishes & TILES) {
        const float most = most_of(peaks, B);
        std::fill(peaks, peaks + B, most);
      }
      for (int r = 0; r < B; r++) own_rows[r * blocks + block] = peaks[r];
    }
    if (columns.to) {
      if (columns_wishes & TRANSFORM) tile.transform(std::is_same_v<X, bf16>);
      vf peaks[Square::V];
      tile.column_peaks(peaks);
      for (int k = 0; k < Square::V; k++) store(own_columns + block * B + k * W, peaks[k]);
    }
  }
  if (rows.to) row_most[b] = most_of(own_rows, B * blocks);
  if (columns.to) column_most[b] = most_of(own_columns, B * blocks);
}

template <bool LOT>
inline vf encoded(vf x, vf encode, vf scale, vu random) {
  const vf size = min(magnitude(x * encode), splat(6.0f));
  if constexpr (LOT) return with_sign_of(stochastic_e2m1(size, random) * scale, x);
  return with_sign_of(nearest_e2m1(size) * scale, x);
}

template <class X>
template <class Y, bool LOT>
void Job<X>::make_rows(const Square& tile, int64_t b, int64_t block, const float* scales,
                       const float* encodes) const {
  const int64_t c = block * B, last = (from.source ? R : from.T) - b * B;
  for (int four = 0; four < B / 4; four++)
    for (int k = 0; k < Square::V; k++) {
      vu words[4];
      if constexpr (LOT) philox(stream, uint32_t(c + k * W), uint32_t(b * (B / 4) + four), words);
      for (int r = four * 4; r < std::min<int64_t>(last, four * 4 + 4); r++) {
        const vf encode = splat(encodes[r * blocks + block]), scale = splat(scales[r * blocks + block]);
        rows.put<Y>(b * B + r, c + k * W, encoded<LOT>(tile.x[r][k], encode, scale, words[r % 4]));
      }
    }
}

template <class X>
template <class Y, bool LOT>
void Job<X>::make_columns(const Square& tile, int64_t b, int64_t block, const Factor& factor) const {
  const int64_t c = block * B;
  const Stream own{stream.step, stream.place | 1, stream.seed};
  for (int k = 0; k < Square::V; k++) {
    vf scale, encode;
    scale_blocks(load(column_peaks + b * B * blocks + c + k * W), factor, scale, encode);
    for (int four = 0; four < B / 4; four++) {
      vu words[4];
      if constexpr (LOT) philox(own, uint32_t(c + k * W), uint32_t(b * (B / 4) + four), words);
      for (int i = 0; i < 4; i++) {
        const int r = four * 4 + i;
        columns.put<Y>(b * B + r, c + k * W, encoded<LOT>(tile.x[r][k], encode, scale, words[i]));
      }
    }
  }
}

// f(Y*, LOT) for a copy's number type and for whether it is rounded by lot.
template <class F>
void with_copy(int type, int wishes, const F& f) {
  with_type(type, [&](auto* y) {
    if (wishes & STOCHASTIC)
      f(y, std::true_type{});
    else
      f(y, std::false_type{});
  });
}

// The values of 16 rows.
template <class X>
void Job<X>::make(int64_t b) const {
  struct Scales;
  struct Encodes;
  const int64_t g = group ? group[b] : 0, count = B * blocks;
  float* scales = Scratch<Scales>::template of<float>(count);
  float* encodes = Scratch<Encodes>::template of<float>(count);
  const Factor by_row(amax[g]), by_column(amax[G + g]);
  if (rows.to)
    for (int64_t i = 0; i < count; i += W) {
      vf scale, encode;
      scale_blocks(load(row_peaks + b * count + i), by_row, scale, encode);
      store(scales + i, scale), store(encodes + i, encode);
    }
  const X* found[B];
  pointers(b, found);
  Square tile;
  for (int64_t block = 0; block < blocks; block++) {
    tile.load(found, block * B, from.C);
    if (rows.to)
      with_copy(rows.type, rows_wishes, [&](auto* y, auto lot) {
        make_rows<std::remove_pointer_t<decltype(y)>, decltype(lot)::value>(tile, b, block, scales, encodes);
      });
    if (!columns.to) continue;
    if (columns_wishes & TRANSFORM) tile.transform(std::is_same_v<X, bf16>);
    with_copy(columns.type, columns_wishes, [&](auto* y, auto lot) {
      make_columns<std::remove_pointer_t<decltype(y)>, decltype(lot)::value>(tile, b, block, by_column);
    });
  }
}

// Largest of each group's blocks; bits are compared, so NaN is the largest.
void gather_most(const float* most, const int32_t* group, int64_t blocks, float* amax, int64_t G) {
  std::fill(amax, amax + G, 0.0f);
  for (int64_t b = 0; b < blocks; b++) {
    int32_t have, found;
    float* own = amax + (group ? group[b] : 0);
    std::memcpy(&have, own, 4), std::memcpy(&found, most + b, 4);
    if (found > have) *own = most[b];
  }
}

}  // namespace

void nvfp4_operands(Address x, int64_t stride, int type, Address source, int64_t T, int64_t R, int64_t C,
                    Address group, int64_t G, Address rows, int rows_type, int rows_wishes, Address columns,
                    int columns_type, int columns_wishes, uint64_t seed, uint32_t step, uint32_t place,
                    Address amax) {
  struct RowPeaks;
  struct ColumnPeaks;
  struct RowMost;
  struct ColumnMost;
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    const int64_t blocks = (C + B - 1) / B, own = R / B;
    const Job<X> job{{at<X>(x), at<int64_t>(source), stride, T, C},
                     R,
                     blocks,
                     at<int32_t>(group),
                     {rows, rows_type, C},
                     {columns, columns_type, C},
                     rows_wishes,
                     columns_wishes,
                     {step, place, seed},
                     Scratch<RowPeaks>::template of<float>(R * blocks),
                     Scratch<ColumnPeaks>::template of<float>(R * blocks),
                     Scratch<RowMost>::template of<float>(own),
                     Scratch<ColumnMost>::template of<float>(own),
                     at<float>(amax),
                     G};
    share(own, 0.3 * B * double(C), [&](int64_t begin, int64_t end) {
      KeepDenormals keep;
      for (int64_t b = begin; b < end; b++) job.look(b);
    });
    if (rows) gather_most(job.row_most, job.group, own, at<float>(amax), G);
    if (columns) gather_most(job.column_most, job.group, own, at<float>(amax) + G, G);
    share(own, 0.7 * B * double(C), [&](int64_t begin, int64_t end) {
      KeepDenormals keep;
      for (int64_t b = begin; b < end; b++) job.make(b);
    });
  });
}

void nvfp4_scaled(Address sums, int sums_type, Address alpha, Address group, int64_t block, Address y, int y_type,
                  int64_t R, int64_t C) {
  with_type(sums_type, [&](auto* s) {
    with_type(y_type, [&](auto* t) {
      using S = std::remove_pointer_t<decltype(s)>;
      using Y = std::remove_pointer_t<decltype(t)>;
      share(R, 0.15 * double(C), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
          const vf factor = splat(at<float>(alpha)[group ? at<int32_t>(group)[r / block] : 0]);
          for (int64_t c = 0; c < C; c += W) {
            vf sum = load_upto(at<S>(sums) + r * C + c, C - c);
            if constexpr (std::is_same_v<S, float>) sum = Square::rounded_to_bf16(sum);
            store_upto(at<Y>(y) + r * C + c, sum * factor, C - c);
          }
        }
      });
    });
  });
}

}  // namespace FATHOM_TIER
