// The functions of conv that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_conv(nb::module_&) {}

}  // namespace FATHOM_TIER
