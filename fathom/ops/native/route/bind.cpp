// The functions of route that Python sees.
#include "core/module.h"
#include "route/route.h"

namespace FATHOM_TIER {

void bind_route(nb::module_& m) {
  kernel<&route>(m, "route");
  kernel<&route_backward>(m, "route_backward");
  kernel<&squared_relu>(m, "squared_relu");
  kernel<&squared_relu_backward>(m, "squared_relu_backward");
}

}  // namespace FATHOM_TIER
