// The functions of experts that Python sees.
#include "core/module.h"
#include "experts/experts.h"

namespace FATHOM_TIER {

void bind_experts(nb::module_& m) { kernel<&experts>(m, "experts"); }

}  // namespace FATHOM_TIER
