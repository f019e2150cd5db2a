// What a `bind.cpp` needs: nanobind, the tape, and the declarations of all of them.
#pragma once

#include <nanobind/nanobind.h>

#include "core/parallel.h"
#include "core/tape.h"
#include "core/types.h"

namespace nb = nanobind;

namespace FATHOM_TIER {

void bind_linear(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_ssd(nb::module_& m);
void bind_conv(nb::module_& m);
void bind_norm(nb::module_& m);
void bind_route(nb::module_& m);
void bind_attend(nb::module_& m);
void bind_step(nb::module_& m);
void bind_draw(nb::module_& m);
void bind_nvfp4(nb::module_& m);

// Bind kernel F under `name`: recorded by tapes, without the interpreter's lock.
template <auto F, class... Extra>
void kernel(nb::module_& m, const char* name, const Extra&... extra) {
  Recorded<F>::name = name;
  m.def(name, recorded<F>, nb::call_guard<nb::gil_scoped_release>(), extra...);
}

}  // namespace FATHOM_TIER
