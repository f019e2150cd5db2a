// The kernels of the nvfp4 room: a matrix as the operands of products in four (or eight) bits.
#pragma once

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// What a copy asks for.
enum Wish : int { STOCHASTIC = 1, TILES = 2, TRANSFORM = 4 };

// x [.., C] of `type`, rows `stride` apart; source int64 [R]: row r is row source[r] of x, -1 being zeros, or none:
// then row r < T is row r; R is a multiple of 16. group int32 [R / 16]: the group of 16 rows, or none for one group.
// -> rows [R or T, C] (`rows_type`, or none): e2m1 x block scale of 16 neighbours in a row; columns [R, C]: the same of
// 16 neighbours in a column; amax fp32 [2, G]: the largest magnitude of each group for rows and for columns (after
// their transform), NaN where one is NaN. The wishes are those of enum Wish.
void nvfp4_operands(Address x, int64_t stride, int type, Address source, int64_t T, int64_t R, int64_t C,
                    Address group, int64_t G, Address rows, int rows_type, int rows_wishes, Address columns,
                    int columns_type, int columns_wishes, uint64_t seed, uint32_t step, uint32_t place,
                    Address amax);

// The same in MXFP8: blocks of 32, a power of two for each, e4m3 to nearest; R is a multiple of 32. A block with a
// number that is not finite becomes NaN.
void mxfp8_operands(Address x, int64_t stride, int type, Address source, int64_t T, int64_t R, int64_t C,
                    Address rows, int rows_type, Address columns, int columns_type);

// sums [R, C] (`sums_type`), rounded to bf16, times alpha fp32 [G] of the row's group -> y [R, C] (`y_type`); group
// int32 [ceil(R / block)], or none for one.
void nvfp4_scaled(Address sums, int sums_type, Address alpha, Address group, int64_t block, Address y, int y_type,
                  int64_t R, int64_t C);

}  // namespace FATHOM_TIER
