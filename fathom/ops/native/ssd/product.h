// Products of small fp32 matrices that lie in cache.
//
// Promise: every element of the result is one chain of fma over the depth, in order, whatever block it
// falls into, so it does not depend on the rows and columns beside it.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace FATHOM_TIER {

// Which part of a product is wanted where rows, columns or depths are tokens of one chunk.
enum class Part {
  all,
  depth_to_row,    // depths up to the row: the left matrix is zero past its diagonal
  depth_from_row,  // depths from the row on: the left matrix is zero before its diagonal
  columns_to_row   // columns up to the row; those past it are left as they were, or hold anything
};

// How the left matrix lies: [rows, depth], or [depth, rows].
enum class Left { by_row, by_depth };

// out [rows, columns] = left x right, or in * scale + left x right with one scale a row.
// Columns count whole vectors; right [depth, columns]; `in` lies as `out` and may be the same.
struct Product {
  int64_t rows, columns, depth;
  const float* left;
  int64_t left_step;
  const float* right;
  int64_t right_step;
  float* out;
  int64_t out_step;
  const float* in = nullptr;
  const float* scale = nullptr;
  int64_t scale_step = 0;
};

// Rows of one block; zeros that a triangular left matrix must hold past its diagonal: one less.
#if defined(__AVX512F__)
constexpr int BLOCK_ROWS = 6, BLOCK_VECTORS = 4;
#elif defined(__AVX2__)
constexpr int BLOCK_ROWS = 6, BLOCK_VECTORS = 2;
#else
constexpr int BLOCK_ROWS = 4, BLOCK_VECTORS = 2;
#endif
static_assert(BLOCK_ROWS <= 2 * W);

void product(Left left, const Product& p, Part part = Part::all);

}  // namespace FATHOM_TIER
