// The functions of step that Python sees.
#include "step/step.h"

#include "core/module.h"

namespace FATHOM_TIER {

void bind_step(nb::module_& m) {
  kernel<&add>(m, "add");
  kernel<&gather_rows>(m, "gather_rows");
  kernel<&copy_cells>(m, "copy_cells");
  kernel<&convert_cells>(m, "convert_cells");
  kernel<&count_up>(m, "count_up");
}

}  // namespace FATHOM_TIER
