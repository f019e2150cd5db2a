// The functions of ssd that Python sees.
#include "core/module.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

void bind_ssd(nb::module_& m) {
  nb::class_<ScanInputs>(m, "ScanInputs")
      .def(nb::init<Address, int64_t, int, Address, int64_t, Address, Address, int64_t, int, Address,
                    int64_t, int, Address>());
  nb::class_<ScanSizes>(m, "ScanSizes")
      .def(nb::init<Address, Address, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>());
  m.def("ssd_state_values", ssd_state_values);
  kernel<&ssd_scan>(m, "ssd_scan");
  kernel<&ssd_scan_backward>(m, "ssd_scan_backward");
  kernel<&ssd_step>(m, "ssd_step");
  kernel<&ssd_peek>(m, "ssd_peek");
  kernel<&ssd_replay>(m, "ssd_replay");
  kernel<&ssd_step_sizes>(m, "ssd_step_sizes");
  kernel<&ssd_step_sizes_backward>(m, "ssd_step_sizes_backward");
}

}  // namespace FATHOM_TIER
