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

// Gradients of fresh sequences. q, y, dy [T, H, d], tokens of q and dy `q_stride` and `dy_stride` values apart;
// lse and delta [T, H] fp32, delta being filled here. Keys and values are given as fp32 pages: k_turned and v_turned
// as pages hold keys, k_rows as they hold values. -> dq [T, H, d], dk and dv [T, h, d], of q's type.
void attend_backward(Address q, int64_t q_stride, int type, Address y, Address dy, int64_t dy_stride, Address lse,
                     Address delta, Address k_turned, Address v_turned, Address k_rows, Address table, Address past,
                     Address offsets, int64_t each, int64_t S, int64_t H, int64_t h, int64_t d, int64_t B, int64_t P,
                     int64_t pages, Address dq, Address dk, Address dv);

}  // namespace FATHOM_TIER
