// The functions of linear that Python sees.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/module.h"
#include "linear/linear.h"

namespace FATHOM_TIER {

// Ask the system for large pages under a buffer that will be read from end to end; where it has none, nothing happens.
static void large_pages(Address address, int64_t bytes) {
#if defined(__linux__)
  constexpr Address PAGE = 4096;
  Address begin = (address + PAGE - 1) / PAGE * PAGE, end = (address + Address(bytes)) / PAGE * PAGE;
  if (begin < end) madvise(at<void>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

void bind_linear(nb::module_& m) {
  m.def("large_pages", &large_pages);
  m.def("panel_bytes", [](int format, int64_t columns) { return panel_bytes(Format(format), columns); });
  m.def("pack", &pack, nb::call_guard<nb::gil_scoped_release>());
  m.def("unpack", &unpack, nb::call_guard<nb::gil_scoped_release>());
  kernel<&linear>(m, "linear");
}

}  // namespace FATHOM_TIER
