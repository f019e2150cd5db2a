// The kernels of the experts room.
#pragma once

#include "linear/linear.h"
#include "linear/panel.h"

namespace FATHOM_TIER {

void experts(int format, Address x, int64_t stride, Address up, Address up_scale, Address down, Address down_scale,
             Address chosen, Address weights, Address y, int64_t T, int64_t D, int64_t I, int64_t E, int64_t K, int type,
             bool int8);

}  // namespace FATHOM_TIER
