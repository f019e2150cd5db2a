// The norms beside plain loops, forward and backward.
#include "norm/norm.h"

#include "driver.h"

namespace FATHOM_TIER {

constexpr double EPS = 1e-5;

static int64_t ranges(int64_t T) { return (T + NORM_RANGE - 1) / NORM_RANGE; }

// g / rms(g) in groups of n channels, and the gradient of g for that of the result.
struct Normal {
  std::vector<double> g, normal, r;
  int64_t D, n;

  Normal(std::vector<double> values, int64_t T, int64_t D, int64_t n)
      : g(std::move(values)), normal(g.size()), r(T * D / n), D(D), n(n) {
    for (size_t i = 0; i < r.size(); i++) {
      double squares = 0;
      for (int64_t d = 0; d < n; d++) squares += g[i * n + d] * g[i * n + d];
      r[i] = 1 / std::sqrt(squares / double(n) + EPS);
      for (int64_t d = 0; d < n; d++) normal[i * n + d] = g[i * n + d] * r[i];
    }
  }

  std::vector<double> backward(const std::vector<double>& d) const {
    std::vector<double> dg(g.size());
    for (size_t i = 0; i < r.size(); i++) {
      double mean = 0;
      for (int64_t j = 0; j < n; j++) mean += d[i * n + j] * normal[i * n + j] / double(n);
      for (int64_t j = 0; j < n; j++) dg[i * n + j] = r[i] * (d[i * n + j] - normal[i * n + j] * mean);
    }
    return dg;
  }
};

template <class X, class U>
static void check_rms(Draw& draw, int64_t T, int64_t D) {
  auto x = draw.normal<X>(T, D, D + 3), dy = draw.normal<X>(T, D);
  auto weight = draw.normal<U>(1, D);
  Table<X> y(T, D), dx(T, D);
  Table<float> partial(ranges(T), D), dweight(1, D);
  rms_norm(x.address(), x.stride, weight.address(), y.address(), T, D, EPS, code<X>, code<U>);
  rms_norm_backward(dy.address(), x.address(), x.stride, weight.address(), dx.address(), partial.address(),
                    dweight.address(), T, D, EPS, code<X>, code<U>);

  std::vector<double> values(T * D), d(T * D), sums(D);
  for (int64_t i = 0; i < T * D; i++) values[i] = x(i / D, i % D), d[i] = dy(i / D, i % D) * weight(0, i % D);
  const Normal normal(values, T, D, D);
  const auto dg = normal.backward(d);
  for (int64_t i = 0; i < T * D; i++) sums[i % D] += dy(i / D, i % D) * normal.normal[i];
  compare(named("rms_norm", T, D), y, allowed<X>,
          [&](int64_t r, int64_t c) { return normal.normal[r * D + c] * weight(0, c); });
  compare(named("rms_norm dx", T, D), dx, allowed<X>, [&](int64_t r, int64_t c) { return dg[r * D + c]; });
  compare(named("rms_norm dweight", T, D), dweight, 2e-5, [&](int64_t, int64_t c) { return sums[c]; });
}

template <class X, class Z>
static void check_gated(Draw& draw, int64_t T, int64_t D, int64_t groups) {
  auto y = draw.normal<X>(T, D, D + 5), dout = draw.normal<X>(T, D);
  auto z = draw.normal<Z>(T, D, 2 * D);
  auto weight = draw.normal<X>(1, D);
  Table<X> out(T, D), dy(T, D);
  Table<Z> dz(T, D);
  Table<float> partial(ranges(T), D), dweight(1, D);
  gated_norm(y.address(), y.stride, z.address(), z.stride, weight.address(), out.address(), T, D, groups, EPS,
             code<X>, code<Z>, code<X>);
  gated_norm_backward(dout.address(), y.address(), y.stride, z.address(), z.stride, weight.address(), dy.address(),
                      dz.address(), partial.address(), dweight.address(), T, D, groups, EPS, code<X>, code<Z>,
                      code<X>);

  std::vector<double> values(T * D), d(T * D), sums(D);
  for (int64_t i = 0; i < T * D; i++) {
    values[i] = y(i / D, i % D) * silu(z(i / D, i % D));
    d[i] = dout(i / D, i % D) * weight(0, i % D);
  }
  const Normal normal(values, T, D, D / groups);
  const auto dg = normal.backward(d);
  for (int64_t i = 0; i < T * D; i++) sums[i % D] += dout(i / D, i % D) * normal.normal[i];
  const std::string sizes = named("", T, D, groups);
  compare("gated_norm" + sizes, out, allowed<X>,
          [&](int64_t r, int64_t c) { return normal.normal[r * D + c] * weight(0, c); });
  compare("gated_norm dy" + sizes, dy, allowed<X>,
          [&](int64_t r, int64_t c) { return dg[r * D + c] * silu(z(r, c)); });
  compare("gated_norm dz" + sizes, dz, allowed<Z>,
          [&](int64_t r, int64_t c) { return dg[r * D + c] * y(r, c) * silu_slope(z(r, c)); });
  compare("gated_norm dweight" + sizes, dweight, 2e-5, [&](int64_t, int64_t c) { return sums[c]; });
}

void check_norm(Draw& draw) {
  for_types([&](auto x) {
    for_types([&](auto u) {
      using X = decltype(x);
      using U = decltype(u);
      for (auto [T, D] : {std::pair{1, 1}, {1, 16}, {3, 5}, {33, 31}, {70, 130}, {100, 512}})
        check_rms<X, U>(draw, T, D);
      for (auto [T, D, groups] : {std::tuple{1, 3, 1}, {1, 64, 4}, {5, 33, 3}, {70, 130, 2}, {100, 512, 8}})
        check_gated<X, U>(draw, T, D, groups);
    });
  });
}

}  // namespace FATHOM_TIER
