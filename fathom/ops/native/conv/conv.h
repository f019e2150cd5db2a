// The kernels of the conv room: the causal depthwise convolution with its SiLU.
//
// Shapes: S sequences of T tokens in all, c channels, k taps. `bounds` [S + 1] (int32) says where each
// sequence begins and where the last one ends; no bounds: every sequence has one token.
#pragma once

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

void conv(Address x, int64_t stride, Address weight, Address bias, Address tail, Address bounds,
          Address y, Address tail_out, int64_t S, int64_t T, int64_t c, int64_t k, int type,
          int weight_type, int bias_type);

void conv_keep(Address tail, Address x, int64_t stride, Address bounds, Address counts, bool counts_wide,
               int64_t S, int64_t c, int64_t k, int type);

// Tokens whose sums over weight and bias are one entry of `partial`.
constexpr int64_t CONV_RANGE = 256;

void conv_backward(Address dy, Address dtail_out, Address x, int64_t stride, Address weight,
                   Address bias, Address tail, Address bounds, Address dx, Address dtail,
                   Address partial, Address dweight, Address dbias, int64_t S, int64_t T, int64_t c,
                   int64_t k, int type, int weight_type, int bias_type);

}  // namespace FATHOM_TIER
