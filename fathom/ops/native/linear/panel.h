// One panel of a matrix times some rows: what every product here is made of.
#pragma once

#include <utility>

#include "core/types.h"
#include "linear/format.h"

namespace FATHOM_TIER {

// A packed matrix [rows, columns]; `scale` multiplies its products' sums.
struct Weights {
  Format format;
  const uint8_t* data;
  int64_t rows, columns;
  float scale;
  Weights(Format format, const uint8_t* data, int64_t rows, int64_t columns, float scale)
      : format(format), data(data), rows(rows), columns(columns), scale(format == Format::nvfp4 ? scale * SCALE_UNIT : scale) {}
};

// What multiplies: fp32, pairs of bf16, or four int8 at a time (NVFP4 weights alone).
enum class Arithmetic : int { wide, pairs, quads };

// The arithmetic of rows of `type` with weights of `format` on this tier; `int8` asks for int8 where weights are NVFP4.
inline Arithmetic arithmetic_of(Format format, int type, bool int8) {
  if (int8 && format == Format::nvfp4) return Arithmetic::quads;
#if defined(__AVX512BF16__)
  if (format != Format::fp32 && Type(type) == Type::bf16) return Arithmetic::pairs;
#endif
  (void)type;
  return Arithmetic::wide;
}

// A function that is borrowed: emit(first row, rows, sums [rows][32]) before the scale.
class Emit {
 public:
  template <class F>
  Emit(const F& f)
      : context_(&f), call_([](const void* c, int64_t first, int rows, const float* sums) {
          (*static_cast<const F*>(c))(first, rows, sums);
        }) {}
  void operator()(int64_t first, int rows, const float* sums) const { call_(context_, first, rows, sums); }

 private:
  const void* context_;
  void (*call_)(const void*, int64_t, int, const float*);
};

// x [T] pointers to rows as `stage_row` makes them for the arithmetic, times one panel. A row's sums are the same bits whatever
// the other rows are.
void panel_product(const Weights& w, int64_t panel, Arithmetic arithmetic, const void* const* x, int64_t T, Emit emit);

// Bytes of one row made ready, and a row of I values made so.
int64_t row_bytes(Arithmetic arithmetic, int64_t columns);
void stage_row(Arithmetic arithmetic, const void* from, int type, void* to, int64_t I);

// Rows made ready for products: in place where they are so already.
class Rows {
 public:
  // x [T, I] of `type`, rows `stride` values apart
  Rows(Arithmetic arithmetic, Address x, int64_t stride, int type, int64_t T, int64_t I);
  const void* const* pointers() const { return pointers_; }

 private:
  const void** pointers_;
};

// sums times the scale -> y [.., O] of T, row by row; the panel's first output is `o`
template <class T>
inline void emit_rows(T* y, int64_t stride, int64_t o, int64_t O, float scale, int rows, const float* sums) {
  vf s = splat(scale);
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < PANEL && o + g < O; g += W) store_upto(y + r * stride + o + g, s * load(sums + r * PANEL + g), O - o - g);
}

}  // namespace FATHOM_TIER
