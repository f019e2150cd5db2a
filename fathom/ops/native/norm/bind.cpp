// The functions of norm that Python sees.
#include "core/module.h"
#include "norm/norm.h"

namespace FATHOM_TIER {

void bind_norm(nb::module_& m) { kernel<&rms_norm>(m, "rms_norm"); }

}  // namespace FATHOM_TIER
