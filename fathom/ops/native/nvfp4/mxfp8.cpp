// A matrix as operands of products in MXFP8: blocks of 32 share a power of two.
#include "core/parallel.h"
#include "nvfp4/nvfp4.h"
#include "nvfp4/tile.h"

namespace FATHOM_TIER {

namespace {

constexpr int B = 32;
using Square = Tile<B>;

// The power of two that brings blocks with these largest magnitudes to 448 at most (rounded up), and what values are
// multiplied by: 2^e and 2^-e with e from -127 to 127.
inline void scale_blocks_mx(vf peaks, vf& scale, vf& encode) {
  const vi bits = vi(peaks * splat(float(1.0 / 448.0)));
  const vi fraction = bits & 0x7fffff;
  vi e = (bits >> 23) & 255;
  // at the very bottom the number is fraction x 2^-149, and 2^-127 is half of the normal range's end
  const vi up = e == 0 ? fraction > 0x400000 : fraction > 0;
  e = e - up;
  e = e > 254 ? vi{} + 254 : e;
  scale = e == 0 ? splat(5.877471754e-39f) : vf(e << 23);
  encode = e == 254 ? splat(5.877471754e-39f) : vf((254 - e) << 23);
}

inline vf encoded(vf x, vf scale, vf encode) {
  const vf y = min(magnitude(x * encode), splat(448.0f));
  return with_sign_of(nearest_e4m3(y) * scale, x);
}

// NaN where the block's largest magnitude is not finite.
inline vf guarded(vf value, vf peaks) {
  return (vi(peaks) >= 0x7f800000) ? splat(NAN) : value;
}

template <class X>
void make(const Rows<X>& from, int64_t b, int64_t last, const Out& rows, const Out& columns) {
  const auto put = [](const Out& out, int64_t r, int64_t c, vf value) {
    with_type(out.type, [&](auto* y) { out.put<std::remove_pointer_t<decltype(y)>>(r, c, value); });
  };
  const X* found[B];
  for (int r = 0; r < B; r++) found[r] = from(b * B + r);
  Square tile;
  for (int64_t c = 0; c < from.C; c += B) {
    tile.load(found, c, from.C);
    if (rows.to) {
      float peaks[B], scales[B], encodes[B];
      tile.row_peaks(peaks);
      for (int r = 0; r < B; r += W) {
        vf scale, encode;
        scale_blocks_mx(load(peaks + r), scale, encode);
        store(scales + r, scale), store(encodes + r, encode);
      }
      for (int r = 0; r < B && b * B + r < last; r++)
        for (int k = 0; k < Square::V; k++) {
          const vf value = encoded(tile.x[r][k], splat(scales[r]), splat(encodes[r]));
          put(rows, b * B + r, c + k * W, guarded(value, splat(peaks[r])));
        }
    }
    if (columns.to) {
      vf peaks[Square::V];
      tile.column_peaks(peaks);
      for (int k = 0; k < Square::V; k++) {
        vf scale, encode;
        scale_blocks_mx(peaks[k], scale, encode);
        for (int r = 0; r < B; r++)
          put(columns, b * B + r, c + k * W, guarded(encoded(tile.x[r][k], scale, encode), peaks[k]));
      }
    }
  }
}

}  // namespace

void mxfp8_operands(Address x, int64_t stride, int type, Address source, int64_t T, int64_t R, int64_t C,
                    Address rows, int rows_type, Address columns, int columns_type) {
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    const Rows<X> from{at<X>(x), at<int64_t>(source), stride, T, C};
    const Out by_row{rows, rows_type, C}, by_column{columns, columns_type, C};
    share(R / B, 0.5 * B * double(C), [&](int64_t begin, int64_t end) {
      KeepDenormals keep;
      for (int64_t b = begin; b < end; b++) make(from, b, source ? R : T, by_row, by_column);
    });
  });
}

}  // namespace FATHOM_TIER
