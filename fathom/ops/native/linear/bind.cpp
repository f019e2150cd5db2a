// The functions of linear that Python sees.
#include "core/module.h"
#include "linear/linear.h"

namespace FATHOM_TIER {

void bind_linear(nb::module_& m) {
  m.def("panel_bytes", [](int format, int64_t columns) { return panel_bytes(Format(format), columns); });
  m.def("pack", &pack, nb::call_guard<nb::gil_scoped_release>());
  m.def("unpack", &unpack, nb::call_guard<nb::gil_scoped_release>());
  kernel<&linear>(m, "linear");
}

}  // namespace FATHOM_TIER
