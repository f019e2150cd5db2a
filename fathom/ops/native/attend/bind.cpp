// The functions of attend that Python sees.
#include "attend/attend.h"
#include "core/module.h"

namespace FATHOM_TIER {

void bind_attend(nb::module_& m) {
  kernel<&attend_append>(m, "attend_append");
  kernel<&attend_forward>(m, "attend_forward");
  kernel<&attend_backward>(m, "attend_backward");
}

}  // namespace FATHOM_TIER
