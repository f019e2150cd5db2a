// The functions of experts that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_experts(nb::module_&) {}

}  // namespace FATHOM_TIER
