// The functions of step that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_step(nb::module_&) {}

}  // namespace FATHOM_TIER
