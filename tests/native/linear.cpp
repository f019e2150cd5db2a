// Products with packed weights beside plain loops, in every stored format.
#include "packed.h"

namespace FATHOM_TIER {

template <class X>
static void check(Draw& draw, Format format, int64_t T, int64_t I, int64_t O, bool int8) {
  auto x = draw.normal<X>(T, I, I + 3);
  const Packed weight(draw, format, 1, O, I);
  const float scale = 0.75f;
  Table<X> y(T, O);
  linear(int(format), x.address(), x.stride, weight.address(), Address(&scale), y.address(), T, I, O, code<X>, int8);
  compare(named("linear", int(format), T, I, O, int(int8)), y, int8 ? 4e-2 : allowed<X>, [&](int64_t t, int64_t o) {
    double sum = 0;
    for (int64_t i = 0; i < I; i++) sum += x(t, i) * weight(o, i);
    return sum * double(scale);
  });
}

void check_linear(Draw& draw) {
  for_types([&](auto x) {
    for (Format format : {Format::fp32, Format::bf16, Format::fp8, Format::nvfp4})
      for (auto [I, O] : {std::pair{16, 1}, {48, 33}, {272, 70}, {17, 40}})
        for (int64_t T : {1, 2, 5, 16, 17, 70}) {
          if (format == Format::nvfp4 && I % BLOCK) continue;
          check<decltype(x)>(draw, format, T, I, O, false);
          if (format == Format::nvfp4) check<decltype(x)>(draw, format, T, I, O, true);
        }
  });
}

}  // namespace FATHOM_TIER
