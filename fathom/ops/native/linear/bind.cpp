// The functions of linear that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_linear(nb::module_&) {}

}  // namespace FATHOM_TIER
