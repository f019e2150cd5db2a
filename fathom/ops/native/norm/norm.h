// The kernels of the norm room. Shapes: T tokens of D channels.
#pragma once

#include <type_traits>
#include <vector>

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// Tokens whose sums over the weight's gradient are one row of `partial`.
constexpr int64_t NORM_RANGE = 32;

void rms_norm(Address x, int64_t stride, Address weight, Address y, int64_t T, int64_t D, double eps,
              int type, int weight_type);

void rms_norm_backward(Address dy, Address x, int64_t stride, Address weight, Address dx,
                       Address partial, Address dweight, int64_t T, int64_t D, double eps, int type,
                       int weight_type);

void gated_norm(Address y, int64_t y_stride, Address z, int64_t z_stride, Address weight, Address out,
                int64_t T, int64_t D, int64_t groups, double eps, int type, int gate_type,
                int weight_type);

void gated_norm_backward(Address dout, Address y, int64_t y_stride, Address z, int64_t z_stride,
                         Address weight, Address dy, Address dz, Address partial, Address dweight,
                         int64_t T, int64_t D, int64_t groups, double eps, int type, int gate_type,
                         int weight_type);

// Rows of sums [rows, D] added up row by row: -> sum [D], all fp32.
void add_rows(const float* rows, float* sum, int64_t count, int64_t D);

}  // namespace FATHOM_TIER
