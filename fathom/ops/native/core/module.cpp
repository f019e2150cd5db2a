// The extension module of one tier: every op's own `bind` puts its functions here.
#include "core/module.h"

#include <cstdlib>

namespace FATHOM_TIER {

thread_local Tape* Tape::recording = nullptr;

}  // namespace FATHOM_TIER

NB_MODULE(FATHOM_MODULE, m) {
  using namespace FATHOM_TIER;
  m.attr("WIDTH") = W;
  m.def("threads", [] { return omp_get_max_threads(); });
  nb::class_<Tape>(m, "Tape")
      .def(nb::init<>())
      .def("begin", &Tape::begin)
      .def("end", &Tape::end)
      .def("__len__", &Tape::size)
      .def("name", &Tape::name)
      .def("spent", [](const Tape& tape, int64_t times) {
        std::vector<int64_t> spent;
        for (int64_t i = 0; i < times; i++) tape.replay_timed(spent);
        nb::list found;
        for (int64_t nanoseconds : spent) found.append(nanoseconds);
        return found;
      })
      .def("replay", &Tape::replay, nb::call_guard<nb::gil_scoped_release>());
  bind_linear(m);
  bind_experts(m);
  bind_ssd(m);
  bind_conv(m);
  bind_norm(m);
  bind_route(m);
  bind_attend(m);
  bind_step(m);
  bind_draw(m);
  bind_nvfp4(m);
}
