// The functions of norm that Python sees.
#include "core/module.h"
#include "norm/norm.h"

namespace FATHOM_TIER {

void bind_norm(nb::module_& m) {
  m.attr("NORM_RANGE") = NORM_RANGE;
  kernel<&rms_norm>(m, "rms_norm");
  kernel<&rms_norm_backward>(m, "rms_norm_backward");
  kernel<&gated_norm>(m, "gated_norm");
  kernel<&gated_norm_backward>(m, "gated_norm_backward");
}

}  // namespace FATHOM_TIER
