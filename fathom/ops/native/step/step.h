// The kernels of the step room: what a decode step needs between the operations.
#pragma once

#include "core/tape.h"
#include "core/types.h"

#include <type_traits>

namespace FATHOM_TIER {

void add(Address x, Address y, Address out, int64_t n, int type);

void gather_rows(Address table, int64_t stride, int64_t rows, Address index, int64_t index_bytes,
                 Address out, int64_t count, int64_t bytes);

void copy_cells(Address from, Address to, int64_t a, int64_t b, int64_t c, int64_t from_a, int64_t from_b,
                int64_t from_c, int64_t to_a, int64_t to_b, int64_t to_c, int64_t bytes);

void convert_cells(Address from, Address to, int64_t a, int64_t b, int64_t c, int64_t from_a,
                   int64_t from_b, int64_t from_c, int64_t to_a, int64_t to_b, int64_t to_c,
                   int from_type);

void count_up(Address x, int64_t n, int64_t by, int64_t bytes);

}  // namespace FATHOM_TIER
