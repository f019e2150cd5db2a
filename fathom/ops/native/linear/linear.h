// The kernels of the linear room.
#pragma once

#include "core/parallel.h"
#include "core/tape.h"
#include "core/types.h"
#include "linear/format.h"

namespace FATHOM_TIER {

void pack(int format, Address values, Address scales, Address data, int64_t first, int64_t rows, int64_t columns);
void unpack(int format, Address values, Address scales, Address data, int64_t first, int64_t rows, int64_t columns);
void linear(int format, Address x, int64_t stride, Address data, Address scale, Address y, int64_t T, int64_t I, int64_t O,
            int type, bool int8);

double panel_cost(Format format, int64_t columns, int64_t T);

}  // namespace FATHOM_TIER
