// Routed experts beside plain loops, in every stored format.
#include "experts/experts.h"

#include "packed.h"

namespace FATHOM_TIER {

template <class X>
static void check(Draw& draw, Format format, int64_t T, int64_t D, int64_t I, int64_t E, int64_t K, bool int8) {
  auto x = draw.normal<X>(T, D, D + 3);
  auto weights = draw.between<float>(0.1, 1, T, K);
  const Packed up(draw, format, E, I, D), down(draw, format, E, D, I);
  auto up_scale = draw.between<float>(0.02, 0.1, 1, E), down_scale = draw.between<float>(0.5, 1, 1, E);
  std::vector<int64_t> chosen;
  for (int64_t t = 0; t < T; t++)
    for (int64_t k = 0, first = draw.below(E); k < K; k++) chosen.push_back((first + k * k) % E);
  Table<X> y(T, D);
  experts(int(format), x.address(), x.stride, up.address(), up_scale.address(), down.address(), down_scale.address(),
          Address(chosen.data()), weights.address(), y.address(), T, D, I, E, K, code<X>, int8);

  Compare each(named("experts", int(format), T, D, I, E, K, int(int8)), int8 ? 6e-2 : 2 * allowed<X>);
  for (int64_t t = 0; t < T; t++) {
    std::vector<double> sum(D), hidden(I);
    for (int64_t k = 0; k < K; k++) {
      const int64_t e = chosen[t * K + k];
      for (int64_t i = 0; i < I; i++) {
        double h = 0;
        for (int64_t d = 0; d < D; d++) h += x(t, d) * up(e * I + i, d) * up_scale(0, e);
        hidden[i] = std::pow(std::max(h, 0.0), 2);
      }
      for (int64_t d = 0; d < D; d++)
        for (int64_t i = 0; i < I; i++) sum[d] += weights(t, k) * down_scale(0, e) * down(e * D + d, i) * hidden[i];
    }
    for (int64_t d = 0; d < D; d++) each(y(t, d), sum[d]);
  }
}

void check_experts(Draw& draw) {
  for_types([&](auto x) {
    for (Format format : {Format::fp32, Format::bf16, Format::fp8, Format::nvfp4})
      for (auto [T, D, I, E, K] :
           {std::tuple{1, 32, 16, 4, 2}, {1, 80, 48, 7, 3}, {23, 80, 48, 7, 3}, {70, 48, 80, 5, 2}})
        for (bool int8 : {false, true})
          if (!int8 || format == Format::nvfp4) check<decltype(x)>(draw, format, T, D, I, E, K, int8);
  });
}

}  // namespace FATHOM_TIER
