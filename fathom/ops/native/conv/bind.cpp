// The functions of conv that Python sees.
#include "conv/conv.h"

#include "core/module.h"

namespace FATHOM_TIER {

void bind_conv(nb::module_& m) {
  m.attr("CONV_RANGE") = CONV_RANGE;
  kernel<&conv>(m, "conv");
  kernel<&conv_keep>(m, "conv_keep");
  kernel<&conv_backward>(m, "conv_backward");
}

}  // namespace FATHOM_TIER
