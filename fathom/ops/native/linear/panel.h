// One panel of a matrix times some rows: what every product here is made of.
#pragma once

#include <utility>

#include "core/types.h"
#include "linear/format.h"

namespace FATHOM_TIER {

// A packed matrix [rows, columns]; `scale` multiplies all of it.
struct Weights {
  Format format;
  const uint8_t* data;
  int64_t rows, columns;
  float scale;
};

// Whether rows of this type are multiplied as bf16 pairs with weights of this format here; else as fp32.
inline bool in_pairs(Format format, int type) {
#if defined(__AVX512BF16__)
  return format != Format::fp32 && Type(type) == Type::bf16;
#else
  (void)format, (void)type;
  return false;
#endif
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

// x [T] pointers to rows of `columns` values (bf16 if `pairs`, else fp32), zero up to a multiple of 16, times one panel.
// A row's sums are the same bits whatever the other rows are.
void panel_product(const Weights& w, int64_t panel, bool pairs, const void* const* x, int64_t T, Emit emit);

// Rows in the type that products take, zeros behind them: in place where they are so already.
class Rows {
 public:
  // x [T, I] of `type`, rows `stride` values apart, for products with weights of `format`
  Rows(Format format, Address x, int64_t stride, int type, int64_t T, int64_t I);
  const void* const* pointers() const { return pointers_; }
  bool pairs() const { return pairs_; }

 private:
  const void** pointers_;
  bool pairs_;
};

// sums times the scale -> y [.., O] of T, row by row; the panel's first output is `o`
template <class T>
inline void emit_rows(T* y, int64_t stride, int64_t o, int64_t O, float scale, int rows, const float* sums) {
  vf s = splat(scale);
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < PANEL && o + g < O; g += W) store_upto(y + r * stride + o + g, s * load(sums + r * PANEL + g), O - o - g);
}

}  // namespace FATHOM_TIER
