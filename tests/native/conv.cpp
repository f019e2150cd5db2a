// The convolution beside plain loops: outputs, tails and gradients.
#include "conv/conv.h"

#include "driver.h"

namespace FATHOM_TIER {

template <class X, class U>
static void check(Draw& draw, const std::vector<int32_t>& lengths, int64_t c, int64_t k, bool continued) {
  std::vector<int32_t> bounds{0};
  for (int32_t length : lengths) bounds.push_back(bounds.back() + length);
  const int64_t S = int64_t(lengths.size()), T = bounds.back(), older = k - 1;
  auto x = draw.normal<X>(T, c, c + 7), dy = draw.normal<X>(T, c);
  auto tail = draw.normal<X>(S * older, c), dtail_out = draw.normal<X>(S * older, c);
  auto weight = draw.normal<U>(c, k), bias = draw.normal<U>(1, c);
  Table<X> y(T, c), tail_out(S * older, c), dx(T, c), dtail(S * older, c);
  Table<float> partial((T + CONV_RANGE - 1) / CONV_RANGE * (k + 1), c), dweight(c, k), dbias(1, c);
  const Address before = continued ? tail.address() : 0;
  conv(x.address(), x.stride, weight.address(), bias.address(), before, Address(bounds.data()), y.address(),
       tail_out.address(), S, T, c, k, code<X>, code<U>, code<U>);
  conv_backward(dy.address(), dtail_out.address(), x.address(), x.stride, weight.address(), bias.address(), before,
                Address(bounds.data()), dx.address(), continued ? dtail.address() : 0, partial.address(),
                dweight.address(), dbias.address(), S, T, c, k, code<X>, code<U>, code<U>);

  const std::string sizes = named("", T, S, c, k, int(continued));
  Compare ys("conv" + sizes, allowed<X>), tails("conv tails" + sizes, 1e-12), dxs("conv dx" + sizes, allowed<X>),
      dtails("conv dtail" + sizes, allowed<X>), dws("conv dweight" + sizes, 2e-5), dbs("conv dbias" + sizes, 2e-5);
  for (int64_t j = 0; j < c; j++) {
    std::vector<double> dw(k);
    double db = 0;
    for (int64_t s = 0; s < S; s++) {
      const int64_t begin = bounds[s], length = lengths[s];
      // the tail, then the sequence
      std::vector<double> whole(older + length), gradient(older + length);
      for (int64_t p = 0; p < older; p++) whole[p] = continued ? tail(s * older + p, j) : 0;
      for (int64_t p = 0; p < length; p++) whole[older + p] = x(begin + p, j);
      for (int64_t p = 0; p < length; p++) {
        double sum = bias(0, j);
        for (int64_t i = 0; i < k; i++) sum += weight(j, i) * whole[p + i];
        ys(y(begin + p, j), silu(sum));
        const double error = dy(begin + p, j) * silu_slope(sum);
        for (int64_t i = 0; i < k; i++) dw[i] += error * whole[p + i], gradient[p + i] += error * weight(j, i);
        db += error;
      }
      for (int64_t p = 0; p < older; p++) {
        tails(tail_out(s * older + p, j), whole[length + p]);
        gradient[length + p] += dtail_out(s * older + p, j);
      }
      for (int64_t p = 0; p < length; p++) dxs(dx(begin + p, j), gradient[older + p]);
      for (int64_t p = 0; p < older && continued; p++) dtails(dtail(s * older + p, j), gradient[p]);
    }
    for (int64_t i = 0; i < k; i++) dws(dweight(j, i), dw[i]);
    dbs(dbias(0, j), db);
  }
}

// One token of every sequence, the tails in place.
template <class X>
static void check_step(Draw& draw, int64_t S, int64_t c, int64_t k) {
  auto x = draw.normal<X>(S, c, 2 * c), tail = draw.normal<X>(S * (k - 1), c);
  auto weight = draw.normal<X>(c, k), bias = draw.normal<X>(1, c);
  Table<X> moved = tail, y(S, c);
  conv(x.address(), x.stride, weight.address(), bias.address(), moved.address(), 0, y.address(), moved.address(), S,
       S, c, k, code<X>, code<X>, code<X>);
  compare(named("conv step", S, c, k), y, allowed<X>, [&](int64_t s, int64_t j) {
    double sum = bias(0, j) + weight(j, k - 1) * x(s, j);
    for (int64_t i = 0; i < k - 1; i++) sum += weight(j, i) * tail(s * (k - 1) + i, j);
    return silu(sum);
  });
  compare(named("conv step tails", S, c, k), moved, 1e-12, [&](int64_t r, int64_t j) {
    return r % (k - 1) == k - 2 ? x(r / (k - 1), j) : tail(r + 1, j);
  });
}

// Tails move on by some of each sequence's inputs, in place.
template <class X, class I>
static void check_keep(Draw& draw, const std::vector<int64_t>& lengths, int64_t c, int64_t k) {
  std::vector<int32_t> bounds{0};
  std::vector<I> counts;
  for (int64_t length : lengths) {
    bounds.push_back(bounds.back() + int32_t(length));
    counts.push_back(I(draw.below(length + 1)));
  }
  const int64_t S = int64_t(lengths.size()), older = k - 1;
  auto x = draw.normal<X>(bounds.back(), c, c + 7), tail = draw.normal<X>(S * older, c);
  Table<X> moved = tail;
  conv_keep(moved.address(), x.address(), x.stride, Address(bounds.data()), Address(counts.data()), sizeof(I) == 8, S,
            c, k, code<X>);
  compare(named("conv_keep", S, c, k, sizeof(I)), moved, 0, [&](int64_t r, int64_t j) {
    const int64_t s = r / older, place = r % older + int64_t(counts[s]);
    return place < older ? tail(s * older + place, j) : x(bounds[s] + place - older, j);
  });
}

void check_conv(Draw& draw) {
  for_types([&](auto x) {
    for_types([&](auto u) {
      for (bool continued : {false, true})
        for (auto [c, k] : {std::pair{1, 4}, {19, 2}, {70, 4}, {300, 4}, {19, 5}})
          for (const auto& lengths : std::vector<std::vector<int32_t>>{{1}, {2, 1, 3}, {70}, {3, 290, 1, 33}})
            check<decltype(x), decltype(u)>(draw, lengths, c, k, continued);
    });
    for (auto [S, c, k] : {std::tuple{1, 1, 2}, {1, 300, 4}, {40, 37, 4}, {5, 16, 6}})
      check_step<decltype(x)>(draw, S, c, k);
    for (const auto& lengths : std::vector<std::vector<int64_t>>{{1}, {4, 4, 4}, {9, 1, 3, 2, 8}})
      for (auto [c, k] : {std::pair{1, 4}, {19, 2}, {300, 4}, {37, 7}}) {
        check_keep<decltype(x), int32_t>(draw, lengths, c, k);
        check_keep<decltype(x), int64_t>(draw, lengths, c, k);
      }
  });
}

}  // namespace FATHOM_TIER
