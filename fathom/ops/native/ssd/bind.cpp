// The functions of ssd that Python sees.
#include "core/module.h"

namespace FATHOM_TIER {

void bind_ssd(nb::module_&) {}

}  // namespace FATHOM_TIER
