// The number types that tensors may have, as the numbers by which Python names them.
#pragma once

#include "core/simd.h"

namespace FATHOM_TIER {

enum class Type : int { fp32 = 0, bf16 = 1, fp8 = 2 };

// Call f with a null pointer of the type that `type` names: f((float*)nullptr) or f((bf16*)nullptr).
template <class F>
inline void with_type(int type, const F& f) {
  if (Type(type) == Type::fp32)
    f(static_cast<float*>(nullptr));
  else
    f(static_cast<bf16*>(nullptr));
}

}  // namespace FATHOM_TIER
