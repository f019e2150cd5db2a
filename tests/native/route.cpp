// Routing and the experts' activation beside plain loops.
#include "route/route.h"

#include <algorithm>
#include <numeric>

#include "driver.h"

namespace FATHOM_TIER {

constexpr double SCALE = 2.5;

template <class X, class U>
static void check(Draw& draw, int64_t T, int64_t D, int64_t E, int64_t K) {
  auto x = draw.normal<X>(T, D, D + 3);
  auto weight = draw.normal<U>(E, D, 0, 1 / std::sqrt(double(D)));
  auto correction = draw.normal<float>(1, E, 0, 0.2), dweights = draw.normal<float>(T, K),
       dscores = draw.normal<float>(T, E);
  std::vector<int64_t> chosen(T * K, -1);
  Table<float> weights(T, K), scores(T, E), dlogits(T, E);
  const Address choice = Address(chosen.data());
  route(x.address(), x.stride, weight.address(), correction.address(), choice, weights.address(), scores.address(),
        T, D, E, K, SCALE, code<X>, code<U>);
  route_backward(dweights.address(), dscores.address(), choice, scores.address(), dlogits.address(), T, E, K, SCALE);

  const std::string sizes = named("", T, D, E, K);
  Compare ss("route scores" + sizes, 2e-5), cs("route chosen" + sizes, 0), ws("route weights" + sizes, 2e-5),
      ds("route dlogits" + sizes, 1e-4);
  for (int64_t t = 0; t < T; t++) {
    std::vector<double> s(E), gradient(E);
    for (int64_t e = 0; e < E; e++) {
      double sum = 0;
      for (int64_t d = 0; d < D; d++) sum += x(t, d) * weight(e, d);
      s[e] = sigmoid(sum);
      gradient[e] = dscores(t, e);
      ss(scores(t, e), s[e]);
    }
    // the choice is made among the fp32 scores that the kernel saw
    std::vector<int64_t> order(E);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return float(scores(t, a)) + float(correction(0, a)) > float(scores(t, b)) + float(correction(0, b));
    });
    double total = 0, heard = 0;
    for (int64_t k = 0; k < K; k++) total += s[order[k]], heard += s[order[k]] * dweights(t, k);
    for (int64_t k = 0; k < K; k++) {
      cs(double(chosen[t * K + k]), double(order[k]));
      ws(weights(t, k), s[order[k]] / total * SCALE);
      gradient[order[k]] += SCALE * (dweights(t, k) - heard / total) / total;
    }
    for (int64_t e = 0; e < E; e++) ds(dlogits(t, e), gradient[e] * s[e] * (1 - s[e]));
  }
}

template <class X>
static void check_squared_relu(Draw& draw, int64_t n) {
  auto x = draw.normal<X>(1, n), dy = draw.normal<X>(1, n);
  Table<X> y(1, n), dx(1, n);
  squared_relu(x.address(), y.address(), n, code<X>);
  squared_relu_backward(dy.address(), x.address(), dx.address(), n, code<X>);
  const auto relu = [&](int64_t i) { return std::max(0.0, x(0, i)); };
  compare(named("squared_relu", n), y, allowed<X>, [&](int64_t, int64_t i) { return relu(i) * relu(i); });
  compare(named("squared_relu dx", n), dx, allowed<X>, [&](int64_t, int64_t i) { return 2 * relu(i) * dy(0, i); });
}

void check_route(Draw& draw) {
  for_types([&](auto x) {
    for_types([&](auto u) {
      for (auto [T, D, E, K] :
           {std::tuple{1, 3, 1, 1}, {1, 300, 33, 4}, {2, 17, 5, 5}, {7, 300, 16, 3}, {37, 530, 50, 6}})
        check<decltype(x), decltype(u)>(draw, T, D, E, K);
    });
    for (int64_t n : {1, 5, 16, 1000, 100003}) check_squared_relu<decltype(x)>(draw, n);
  });
}

}  // namespace FATHOM_TIER
