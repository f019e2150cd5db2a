// The function of draw that Python sees.
#include "core/module.h"
#include "draw/draw.h"

namespace FATHOM_TIER {

void bind_draw(nb::module_& m) { kernel<&draw_tokens>(m, "draw_tokens"); }

}  // namespace FATHOM_TIER
