// The kernels of the attend room.
//
// T tokens of S sequences, H query heads, h key-value heads of width d; query head i reads key-value head
// i / (H / h). Pages are described in `pages.h`.
#pragma once

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// k and v [T, h, d], tokens `k_stride` and `v_stride` values apart -> the pages, at past[s] and after.
void attend_append(Address k, int64_t k_stride, int type, Address v, int64_t v_stride, Address keys, Address values,
                   int kv_type, Address table, Address past, Address offsets, int64_t each, int64_t S, int64_t T,
                   int64_t h, int64_t d, int64_t B, int64_t P, int64_t pages, double k_scale, double v_scale);

// q [T, H, d], tokens `q_stride` values apart -> y [T, H, d], and lse [T, H] fp32 unless its address is 0.
void attend_forward(Address q, int64_t q_stride, int type, Address y, Address lse, Address keys, Address values,
                    int kv_type, Address table, Address past, Address offsets, int64_t each, int64_t S, int64_t T,
                    int64_t H, int64_t h, int64_t d, int64_t B, int64_t P, int64_t pages, double k_scale,
                    double v_scale);

}  // namespace FATHOM_TIER
