// The one kernel of the scan's products: a block of rows and vectors held in registers.
#include "ssd/product.h"

#include <algorithm>

namespace FATHOM_TIER {

template <Left LEFT, int ROWS, int VECTORS>
static void block(const Product& p, int64_t row, int64_t column, int64_t from, int64_t to) {
  const int64_t step = p.left_step;
  const float* a = LEFT == Left::by_row ? p.left + row * step + from : p.left + from * step + row;
  const float* b = p.right + from * p.right_step + column;
  vf sums[ROWS][VECTORS] = {};
  for (int64_t k = from; k < to; k++) {
    vf right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) right[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      vf left = splat(LEFT == Left::by_row ? a[r * step] : a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[r][v] = fma(left, right[v], sums[r][v]);
    }
    a += LEFT == Left::by_row ? 1 : step;
    b += p.right_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    int64_t place = (row + r) * p.out_step + column;
    if (p.in) {
      vf scale = p.scale ? splat(p.scale[(row + r) * p.scale_step]) : splat(1.0f);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        sums[r][v] = fma(load(p.in + place + v * W), scale, sums[r][v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) store(p.out + place + v * W, sums[r][v]);
  }
}

template <Left LEFT, int ROWS>
static void blocks(const Product& p, Part part, int64_t row) {
  int64_t from = part == Part::depth_from_row ? row : 0;
  int64_t to = part == Part::depth_to_row ? std::min(p.depth, row + ROWS) : p.depth;
  int64_t columns = p.columns;
  if (part == Part::columns_to_row) columns = std::min(columns, (row + ROWS + W - 1) / W * W);
  for (int64_t c = 0; c < columns;) {
    int64_t vectors = std::min<int64_t>((columns - c) / W, BLOCK_VECTORS);
    if (BLOCK_VECTORS >= 4 && vectors == 4)
      block<LEFT, ROWS, BLOCK_VECTORS >= 4 ? 4 : 1>(p, row, c, from, to);
    else if (BLOCK_VECTORS >= 4 && vectors == 3)
      block<LEFT, ROWS, BLOCK_VECTORS >= 4 ? 3 : 1>(p, row, c, from, to);
    else if (vectors == 2)
      block<LEFT, ROWS, 2>(p, row, c, from, to);
    else
      block<LEFT, ROWS, 1>(p, row, c, from, to);
    c += vectors * W;
  }
}

template <Left LEFT>
static void rows(const Product& p, Part part) {
  int64_t row = 0;
  for (; row + BLOCK_ROWS <= p.rows; row += BLOCK_ROWS) blocks<LEFT, BLOCK_ROWS>(p, part, row);
  if (BLOCK_ROWS > 4 && row + 4 <= p.rows) {
    blocks<LEFT, 4>(p, part, row);
    row += 4;
  }
  if (row + 2 <= p.rows) {
    blocks<LEFT, 2>(p, part, row);
    row += 2;
  }
  if (row < p.rows) blocks<LEFT, 1>(p, part, row);
}

void product(Left left, const Product& p, Part part) {
  if (left == Left::by_row)
    rows<Left::by_row>(p, part);
  else
    rows<Left::by_depth>(p, part);
}

}  // namespace FATHOM_TIER
