// The functions of nvfp4 that Python sees.
#include "core/module.h"
#include "nvfp4/nvfp4.h"

namespace FATHOM_TIER {

void bind_nvfp4(nb::module_& m) {
  kernel<&nvfp4_operands>(m, "nvfp4_operands");
  kernel<&mxfp8_operands>(m, "mxfp8_operands");
  kernel<&nvfp4_scaled>(m, "nvfp4_scaled");
}

}  // namespace FATHOM_TIER
