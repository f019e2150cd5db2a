// The kernels of the norm room.
#pragma once

#include <type_traits>

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

void rms_norm(Address x, int64_t stride, Address weight, Address y, int64_t T, int64_t D, double eps,
              int type, int weight_type);

}  // namespace FATHOM_TIER
