// The recurrence on vectors of states: what steps, drafts and their replay have in common.
//
// Promise: whoever moves a state on with `advance` and reads it with `sums` gets the bits of `ssd_step`.
#pragma once

#include <utility>

#include "core/simd.h"

namespace FATHOM_TIER {

// Decayed state + v B.
inline vf advance(vf state, vf decay, vf v, vf B) { return fma(state, decay, v * B); }

template <int... I>
inline vf pair_sums(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// The sums of W vectors, as the lanes of one.
inline vf sums(vf (&m)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) m[i] = pair_sums(m[2 * i], m[2 * i + 1], lanes);
  return m[0];
}

}  // namespace FATHOM_TIER
