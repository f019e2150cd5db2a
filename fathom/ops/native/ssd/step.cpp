// One token of every sequence, and several that a ring kept: each state is read and written once.
#include <type_traits>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

namespace {

// The recurrence: decayed state + v B.
inline vf advance(vf state, vf decay, vf v, vf B) { return fma(state, decay, v * B); }

template <int... I>
inline vf pair_sums(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// The sums of W vectors, as the lanes of one.
inline vf sums(vf (&m)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) m[i] = pair_sums(m[2 * i], m[2 * i + 1], lanes);
  return m[0];
}

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

void ssd_replay(Address state, Address x, int x_type, Address dt, Address A, Address B, int B_type,
                Address counts, bool counts_wide, int64_t S, int64_t R, int64_t H, int64_t P, int64_t G,
                int64_t N) {
  with_type(x_type, [&](auto* tx) {
    using X = std::remove_pointer_t<decltype(tx)>;
    with_type(B_type, [&](auto* tb) {
      using BT = std::remove_pointer_t<decltype(tb)>;
      share(S * H * P, 0.4 * double(N), [&](int64_t begin, int64_t end) {
        std::vector<float> decay(R), v(R);
        for (int64_t i = begin; i < end; i++) {
          int64_t s = i / (H * P), h = i / P % H, p = i % P, g = h / (H / G);
          int64_t count = counts_wide ? at<int64_t>(counts)[s] : at<int32_t>(counts)[s];
          count = std::min(count, R);
          const float* step = at<float>(dt) + s * R * H + h;
          if (i == begin || p == 0)
            for (int64_t r = 0; r < count; r++) decay[r] = exp(splat(step[r * H] * at<float>(A)[h]))[0];
          for (int64_t r = 0; r < count; r++)
            v[r] = widen(at<X>(x)[((s * R + r) * H + h) * P + p]) * step[r * H];
          float* row = at<float>(state) + i * N;
          for (int64_t n = 0; count > 0 && n < N; n += W) {
            vf now = load_upto(row + n, N - n);
            for (int64_t r = 0; r < count; r++) {
              const BT* written = at<BT>(B) + ((s * R + r) * G + g) * N + n;
              now = advance(now, splat(decay[r]), splat(v[r]), load_upto(written, N - n));
            }
            store_upto(row + n, now, N - n);
          }
        }
      });
    });
  });
}

}  // namespace FATHOM_TIER
