// One token of every sequence: each state is read and written once.
#include <type_traits>

#include "core/parallel.h"
#include "ssd/recurrence.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

namespace {

// Up to W channels of one head; x, y and the states begin at the first of them.
template <class X, class BT, class CT>
void channels(const X* x, float dt, float rate, const BT* B, const CT* C, float D, const float* before,
              float* after, X* y, int64_t count, int64_t N) {
  vf decay = exp(splat(dt * rate)), own = load_upto(x, count), written = own * splat(dt);
  float v[W];
  store(v, written);
  vf heard[W] = {};
  for (int64_t i = 0; i < count; i++) {
    vf from = splat(v[i]), total{};
    const float* in = before + i * N;
    float* out = after + i * N;
    int64_t n = 0;
    for (; n + W <= N; n += W) {
      vf state = advance(load(in + n), decay, from, load(B + n));
      store(out + n, state);
      total = fma(state, load(C + n), total);
    }
    if (n < N) {
      int rest = int(N - n);
      vf state = advance(load_some(in + n, rest), decay, from, load_some(B + n, rest));
      store_some(out + n, state, rest);
      total = fma(state, load_some(C + n, rest), total);
    }
    heard[i] = total;
  }
  store_upto(y, fma(splat(D), own, sums(heard)), count);
}

}  // namespace

void ssd_step(Address x, int64_t x_step, int x_type, Address dt, int64_t dt_step, Address A, Address B,
              int64_t B_step, int B_type, Address C, int64_t C_step, int C_type, Address D,
              int D_type, Address before, Address after, Address y, int64_t S, int64_t H, int64_t P,
              int64_t G, int64_t N) {
  int64_t blocks = (P + W - 1) / W, R = H / G;
  with_type(x_type, [&](auto* tx) {
    using X = std::remove_pointer_t<decltype(tx)>;
    with_type(B_type, [&](auto* tb) {
      using BT = std::remove_pointer_t<decltype(tb)>;
      with_type(C_type, [&](auto* tc) {
        using CT = std::remove_pointer_t<decltype(tc)>;
        share(S * H * blocks, 0.4 * double(W * N), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) {
            int64_t s = i / (H * blocks), h = i / blocks % H, p = i % blocks * W;
            int64_t state = ((s * H + h) * P + p) * N;
            float skip = Type(D_type) == Type::fp32 ? at<float>(D)[h] : widen(at<bf16>(D)[h]);
            channels(at<X>(x) + s * x_step + h * P + p, at<float>(dt)[s * dt_step + h], at<float>(A)[h],
                     at<BT>(B) + s * B_step + h / R * N, at<CT>(C) + s * C_step + h / R * N,
                     skip, at<float>(before) + state, at<float>(after) + state,
                     at<X>(y) + (s * H + h) * P + p, std::min<int64_t>(W, P - p), N);
          }
        });
      });
    });
  });
}

}  // namespace FATHOM_TIER
