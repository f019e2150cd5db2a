// The scan, its gradients, steps and drafts beside the recurrence token by token.
#include "ssd/ssd.h"

#include "driver.h"
#include "ssd/rounding.h"

namespace FATHOM_TIER {

template <>
inline fp16 narrow<fp16>(float x) {
  fp16 several[W];
  store(several, splat(x));
  return several[0];
}

// How far states may be off: each of a few roundings by chance is one part in 1024 at most.
template <class Z>
constexpr double stored = std::is_same_v<Z, float> ? 2e-5 : 2e-3;

struct Shape {
  int64_t H, P, G, N, Q;
};

// The recurrence in double, forward and backward.
template <class X>
struct Recurrence {
  const Shape n;
  const Table<X>&x, &B, &C;
  const Table<float>&dt, &A, &D;

  double decay(int64_t t, int64_t h) const { return std::exp(dt(t, h) * A(0, h)); }
  double in(int64_t t, int64_t h, int64_t i) const { return B(t, h / (n.H / n.G) * n.N + i); }
  double out(int64_t t, int64_t h, int64_t i) const { return C(t, h / (n.H / n.G) * n.N + i); }

  // state [P, N] of head h moves on by token t
  void step(std::vector<double>& state, int64_t t, int64_t h) const {
    for (int64_t p = 0; p < n.P; p++)
      for (int64_t i = 0; i < n.N; i++) {
        double& s = state[p * n.N + i];
        s = s * decay(t, h) + dt(t, h) * x(t, h * n.P + p) * in(t, h, i);
      }
  }

  double read(const std::vector<double>& state, int64_t t, int64_t h, int64_t p) const {
    double sum = D(0, h) * x(t, h * n.P + p);
    for (int64_t i = 0; i < n.N; i++) sum += state[p * n.N + i] * out(t, h, i);
    return sum;
  }
};

struct Gradients {
  std::vector<double> x, dt, A, B, C, D;
};

// Adds the gradients of one head and one sequence; `g` [P, N], the final state's gradient, becomes the initial one's.
template <class X>
static void backward(const Recurrence<X>& r, const Table<X>& dy, const std::vector<std::vector<double>>& states,
                     int64_t begin, int64_t h, std::vector<double>& g, Gradients& sums) {
  const Shape n = r.n;
  const int64_t group = h / (n.H / n.G);
  for (int64_t t = begin + int64_t(states.size()) - 2; t >= begin; t--) {
    const auto &before = states[t - begin], &after = states[t - begin + 1];
    const double decay = r.decay(t, h), dt = r.dt(t, h);
    for (int64_t p = 0; p < n.P; p++) {
      const double x = r.x(t, h * n.P + p), dout = dy(t, h * n.P + p);
      sums.D[h] += dout * x;
      double& dx = sums.x[(t * n.H + h) * n.P + p];
      dx += r.D(0, h) * dout;
      for (int64_t i = 0; i < n.N; i++) {
        double& dstate = g[p * n.N + i];
        dstate += dout * r.out(t, h, i);
        sums.C[(t * n.G + group) * n.N + i] += dout * after[p * n.N + i];
        sums.B[(t * n.G + group) * n.N + i] += dstate * dt * x;
        dx += dstate * dt * r.in(t, h, i);
        const double kept = dstate * decay * before[p * n.N + i];
        sums.dt[t * n.H + h] += kept * r.A(0, h) + dstate * x * r.in(t, h, i);
        sums.A[h] += kept * dt;
        dstate *= decay;
      }
    }
  }
}

template <class X>
static void check_scan(Draw& draw, const std::vector<int64_t>& lengths, Shape n, bool continued) {
  const int64_t S = int64_t(lengths.size()), state = n.P * n.N;
  std::vector<int64_t> begins{0}, pieces, firsts{0};
  for (int64_t length : lengths) {
    for (int64_t done = 0; done < length; done += n.Q) {
      pieces.push_back(begins.back() + done);
      pieces.push_back(std::min(n.Q, length - done));
    }
    firsts.push_back(int64_t(pieces.size()) / 2);
    begins.push_back(begins.back() + length);
  }
  const int64_t T = begins.back(), K = firsts.back();
  auto x = draw.normal<X>(T, n.H * n.P, n.H * n.P + 5), B = draw.normal<X>(T, n.G * n.N, n.G * n.N + 9),
       C = draw.normal<X>(T, n.G * n.N), dy = draw.normal<X>(T, n.H * n.P);
  auto dt = draw.between<float>(0.01, 0.5, T, n.H), A = draw.between<float>(-4, -0.1, 1, n.H);
  auto D = draw.normal<float>(1, n.H), initial = draw.normal<float>(S * n.H, state),
       dfinal = draw.normal<float>(S * n.H, state);
  const ScanInputs inputs{x.address(), x.stride, code<X>, dt.address(), dt.stride, A.address(), B.address(), B.stride,
                          code<X>, C.address(), C.stride, code<X>, D.address()};
  const ScanSizes sizes{Address(pieces.data()), Address(firsts.data()), S, K, n.H, n.P, n.G, n.N, n.Q};
  Table<X> y(T, n.H * n.P), dx(T, n.H * n.P), dB(T, n.G * n.N), dC(T, n.G * n.N);
  Table<float> inner(T, n.H * n.P), states(K + S, n.H * ssd_state_values(n.P, n.N)), final(S * n.H, state),
      ddt(T, n.H), dA(1, n.H), dD(1, n.H), dinitial(S * n.H, state);
  const Address before = continued ? initial.address() : 0;
  ssd_scan(inputs, sizes, before, y.address(), inner.address(), states.address(), final.address());
  ssd_scan_backward(inputs, sizes, dy.address(), dfinal.address(), inner.address(), states.address(), continued,
                    dx.address(), ddt.address(), dA.address(), dB.address(), dC.address(), dD.address(),
                    continued ? dinitial.address() : 0);

  const std::string name = named("", T, S, n.H, n.P, n.G, n.N, n.Q, int(continued));
  const Recurrence<X> r{n, x, B, C, dt, A, D};
  Gradients sums{std::vector<double>(T * n.H * n.P), std::vector<double>(T * n.H), std::vector<double>(n.H),
                 std::vector<double>(T * n.G * n.N), std::vector<double>(T * n.G * n.N), std::vector<double>(n.H)};
  Compare ys("ssd_scan" + name, 2 * allowed<X>), finals("ssd_scan final" + name, 1e-4),
      initials("ssd_scan dinitial" + name, 1e-4);
  for (int64_t s = 0; s < S; s++)
    for (int64_t h = 0; h < n.H; h++) {
      std::vector<double> held(state), g(state);
      for (int64_t i = 0; i < state; i++) held[i] = continued ? initial(s * n.H + h, i) : 0;
      std::vector<std::vector<double>> all{held};
      for (int64_t t = begins[s]; t < begins[s + 1]; t++) {
        r.step(held, t, h);
        all.push_back(held);
        for (int64_t p = 0; p < n.P; p++) ys(y(t, h * n.P + p), r.read(held, t, h, p));
      }
      for (int64_t i = 0; i < state; i++) finals(final(s * n.H + h, i), held[i]), g[i] = dfinal(s * n.H + h, i);
      backward(r, dy, all, begins[s], h, g, sums);
      for (int64_t i = 0; i < state && continued; i++) initials(dinitial(s * n.H + h, i), g[i]);
    }
  const double near = 4 * allowed<X>;
  compare("ssd_scan dx" + name, dx, near, [&](int64_t t, int64_t c) { return sums.x[t * dx.columns + c]; });
  compare("ssd_scan ddt" + name, ddt, near, [&](int64_t t, int64_t h) { return sums.dt[t * n.H + h]; });
  // where one token finds no state it is a difference of equals
  compare("ssd_scan dA" + name, dA, 2 * near, [&](int64_t, int64_t h) { return sums.A[h]; });
  compare("ssd_scan dB" + name, dB, near, [&](int64_t t, int64_t c) { return sums.B[t * dB.columns + c]; });
  compare("ssd_scan dC" + name, dC, near, [&](int64_t t, int64_t c) { return sums.C[t * dC.columns + c]; });
  compare("ssd_scan dD" + name, dD, near, [&](int64_t, int64_t h) { return sums.D[h]; });
}

// Tokens before those of up to five sequences, where states are rounded; else 0.
template <class Z>
static Address past() {
  static const int32_t tokens[] = {0, 5, 1 << 20, 7, 7};
  return std::is_same_v<Z, float> ? 0 : Address(tokens);
}

template <class X, class Z>
static void check_step(Draw& draw, int64_t S, Shape n) {
  const int64_t state = n.P * n.N;
  auto x = draw.normal<X>(S, n.H * n.P, 2 * n.H * n.P), B = draw.normal<X>(S, n.G * n.N, n.G * n.N + 9),
       C = draw.normal<X>(S, n.G * n.N);
  auto dt = draw.between<float>(0.01, 0.5, S, n.H), A = draw.between<float>(-4, -0.1, 1, n.H);
  auto D = draw.normal<float>(1, n.H), before = draw.normal<Z>(S * n.H, state);
  auto after = before;
  Table<X> y(S, n.H * n.P);
  ssd_step(x.address(), x.stride, code<X>, dt.address(), dt.stride, A.address(), B.address(), B.stride, code<X>,
           C.address(), C.stride, code<X>, D.address(), code<float>, after.address(), after.address(), past<Z>(), 3,
           y.address(), S, n.H, n.P, n.G, n.N);
  const Recurrence<X> r{n, x, B, C, dt, A, D};
  const std::string name = named("", S, n.H, n.P, n.G, n.N);
  Compare ys("ssd_step" + name, allowed<X>), states("ssd_step state" + name, stored<Z>);
  for (int64_t s = 0; s < S; s++)
    for (int64_t h = 0; h < n.H; h++) {
      std::vector<double> held(state);
      for (int64_t i = 0; i < state; i++) held[i] = before(s * n.H + h, i);
      r.step(held, s, h);
      for (int64_t p = 0; p < n.P; p++) ys(y(s, h * n.P + p), r.read(held, s, h, p));
      for (int64_t i = 0; i < state; i++) states(after(s * n.H + h, i), held[i]);
    }
}

// Tokens of a draft: what they say, the states left alone; then states move on by some of each sequence's.
template <class X, class Z>
static void check_draft(Draw& draw, const std::vector<int64_t>& lengths, Shape n) {
  const int64_t S = int64_t(lengths.size()), state = n.P * n.N;
  std::vector<int32_t> bounds{0}, counts;
  for (int64_t length : lengths) {
    bounds.push_back(bounds.back() + int32_t(length));
    counts.push_back(int32_t(draw.below(length + 1)));
  }
  const std::vector<int64_t> wide(counts.begin(), counts.end());
  const int64_t T = bounds.back();
  auto x = draw.normal<X>(T, n.H * n.P, 2 * n.H * n.P), B = draw.normal<X>(T, n.G * n.N, n.G * n.N + 9),
       C = draw.normal<X>(T, n.G * n.N);
  auto dt = draw.between<float>(0.01, 0.5, T, n.H), A = draw.between<float>(-4, -0.1, 1, n.H);
  auto D = draw.normal<float>(1, n.H), before = draw.normal<Z>(S * n.H, state);
  auto same = before, after = before, again = before;
  Table<X> y(T, n.H * n.P);
  ssd_peek(x.address(), x.stride, code<X>, dt.address(), dt.stride, A.address(), B.address(), B.stride, code<X>,
           C.address(), C.stride, code<X>, D.address(), code<float>, Address(bounds.data()), same.address(),
           past<Z>(), 3, y.address(), S, n.H, n.P, n.G, n.N);
  for (bool is_wide : {false, true})
    ssd_replay((is_wide ? again : after).address(), past<Z>(), 3, x.address(), x.stride, code<X>, dt.address(),
               dt.stride, A.address(), B.address(), B.stride, code<X>, Address(bounds.data()),
               is_wide ? Address(wide.data()) : Address(counts.data()), is_wide, S, n.H, n.P, n.G, n.N);
  const Recurrence<X> r{n, x, B, C, dt, A, D};
  const std::string name = named("", T, S, n.H, n.P, n.G, n.N);
  Compare ys("ssd_peek" + name, std::max(allowed<X>, stored<Z>)), stays("ssd_peek state" + name, 0),
      states("ssd_replay" + name, stored<Z>), twice("ssd_replay by int64" + name, 0);
  for (int64_t s = 0; s < S; s++)
    for (int64_t h = 0; h < n.H; h++) {
      const int64_t row = s * n.H + h;
      std::vector<double> held(state);
      for (int64_t i = 0; i < state; i++) held[i] = before(row, i), stays(same(row, i), before(row, i));
      for (int64_t i = 0; i <= lengths[s]; i++) {
        for (int64_t j = 0; j < state && i == counts[s]; j++) {
          states(after(row, j), held[j]);
          twice(again(row, j), after(row, j));
        }
        if (i == lengths[s]) break;
        r.step(held, bounds[s] + i, h);
        for (int64_t p = 0; p < n.P; p++)
          ys(y(bounds[s] + i, h * n.P + p), r.read(held, bounds[s] + i, h, p));
      }
    }
}

template <class X>
static void check_step_sizes(Draw& draw, int64_t T, int64_t H) {
  auto raw = draw.normal<X>(T, H, H + 3, 8);
  auto bias = draw.normal<X>(1, H);
  auto dsteps = draw.normal<float>(T, H);
  Table<float> steps(T, H), dbias(1, H);
  Table<X> draw_(T, H);
  ssd_step_sizes(raw.address(), raw.stride, code<X>, bias.address(), code<X>, steps.address(), T, H);
  ssd_step_sizes_backward(raw.address(), raw.stride, code<X>, bias.address(), code<X>, dsteps.address(),
                          draw_.address(), dbias.address(), T, H);
  const auto slope = [&](int64_t t, int64_t h) { return dsteps(t, h) * sigmoid(raw(t, h) + bias(0, h)); };
  compare(named("ssd_step_sizes", T, H), steps, 2e-5,
          [&](int64_t t, int64_t h) { return std::log1p(std::exp(raw(t, h) + bias(0, h))); });
  compare(named("ssd_step_sizes draw", T, H), draw_, allowed<X>, slope);
  compare(named("ssd_step_sizes dbias", T, H), dbias, 2e-5, [&](int64_t, int64_t h) {
    double sum = 0;
    for (int64_t t = 0; t < T; t++) sum += slope(t, h);
    return sum;
  });
}

void check_ssd(Draw& draw) {
  for_types([&](auto x) {
    using X = decltype(x);
    for (bool continued : {false, true})
      for (const Shape& n : {Shape{2, 3, 1, 5, 8}, {4, 20, 2, 33, 16}, {2, 64, 1, 64, 32}})
        for (const auto& lengths : std::vector<std::vector<int64_t>>{{1}, {40}, {3, 1, 35}})
          check_scan<X>(draw, lengths, n, continued);
    for (const Shape& n : {Shape{2, 3, 1, 5, 0}, {4, 20, 2, 33, 0}, {8, 64, 4, 64, 0}}) {
      for (int64_t S : {1, 5}) check_step<X, float>(draw, S, n), check_step<X, fp16>(draw, S, n);
      for (const auto& lengths : std::vector<std::vector<int64_t>>{{1}, {4, 4}, {3, 1, 9, 8}})
        check_draft<X, float>(draw, lengths, n), check_draft<X, fp16>(draw, lengths, n);
    }
    for (auto [T, H] : {std::pair{1, 1}, {7, 33}, {300, 64}}) check_step_sizes<X>(draw, T, H);
  });
}

}  // namespace FATHOM_TIER
