// The functions of attend that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_attend(nb::module_&) {}

}  // namespace FATHOM_TIER
