// One token of every sequence: each state is read and written once.
#include <type_traits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "ssd/recurrence.h"
#include "ssd/rounding.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

namespace {

// Up to W channels of one head; x, y and the states begin at the first of them. What is read out of a state is
// read before it is rounded.
template <class X, class BT, class CT, class Z>
void channels(const X* x, float dt, float rate, const BT* B, const CT* C, float D, const Z* before, Z* after, X* y,
              vu rows, const uint32_t* columns, int64_t count, int64_t N) {
  vf decay = exp(splat(dt * rate)), own = load_upto(x, count), written = own * splat(dt);
  float v[W];
  store(v, written);
  vf heard[W] = {};
  for (int64_t i = 0; i < count; i++) {
    vf from = splat(v[i]), total{};
    const Z* in = before + i * N;
    Z* out = after + i * N;
    uint32_t row = rows[i];
    int64_t n = 0;
    for (; n + W <= N; n += W) {
      vf state = advance(load(in + n), decay, from, load(B + n));
      store(out + n, dithered<Z>(state, row, columns + n));
      total = fma(state, load(C + n), total);
    }
    if (n < N) {
      int rest = int(N - n);
      vf state = advance(load_some(in + n, rest), decay, from, load_some(B + n, rest));
      store_some(out + n, dithered<Z>(state, row, columns + n), rest);
      total = fma(state, load_some(C + n, rest), total);
    }
    heard[i] = total;
  }
  store_upto(y, fma(splat(D), own, sums(heard)), count);
}

}  // namespace

void ssd_step(Address x, int64_t x_step, int x_type, Address dt, int64_t dt_step, Address A, Address B,
              int64_t B_step, int B_type, Address C, int64_t C_step, int C_type, Address D, int D_type,
              Address before, Address after, Address past, uint32_t seed, Address y, int64_t S, int64_t H,
              int64_t P, int64_t G, int64_t N) {
  int64_t blocks = (P + W - 1) / W, R = H / G;
  auto run = [&](auto* tx, auto* tb, auto* tc, auto* tz) {
    using X = std::remove_pointer_t<decltype(tx)>;
    using BT = std::remove_pointer_t<decltype(tb)>;
    using CT = std::remove_pointer_t<decltype(tc)>;
    using Z = std::remove_pointer_t<decltype(tz)>;
    share(S * H * blocks, 0.4 * double(W * N), [&](int64_t begin, int64_t end) {
      uint32_t token = 0, *columns = past ? Scratch<fp16>::of<uint32_t>(N + W) : nullptr;
      for (int64_t i = begin, last = -1; i < end; i++) {
        int64_t s = i / (H * blocks), h = i / blocks % H, p = i % blocks * W;
        if (past && s != last) column_seeds(token = token_seed(past, seed, s, 0), N, columns), last = s;
        int64_t state = ((s * H + h) * P + p) * N;
        float skip = Type(D_type) == Type::fp32 ? at<float>(D)[h] : widen(at<bf16>(D)[h]);
        channels(at<X>(x) + s * x_step + h * P + p, at<float>(dt)[s * dt_step + h], at<float>(A)[h],
                 at<BT>(B) + s * B_step + h / R * N, at<CT>(C) + s * C_step + h / R * N, skip,
                 at<Z>(before) + state, at<Z>(after) + state, at<X>(y) + (s * H + h) * P + p,
                 row_seeds(token, h * P + p), columns, std::min<int64_t>(W, P - p), N);
      }
    });
  };
  with_type(x_type, [&](auto* tx) {
    with_type(B_type, [&](auto* tb) {
      with_type(C_type, [&](auto* tc) { with_state(past, [&](auto* tz) { run(tx, tb, tc, tz); }); });
    });
  });
}

}  // namespace FATHOM_TIER
