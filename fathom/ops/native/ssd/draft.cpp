// What a draft asks of states: what its tokens would say (peek), and to move on by those that stay (replay).
//
// Promise: the bits of `ssd_step` for the tokens one after the other. A vector of states meets several tokens
// while it is in a register; peek writes no state, however many tokens there are.
#include <type_traits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "ssd/recurrence.h"
#include "ssd/rounding.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

namespace {

constexpr int TOGETHER = 8;  // tokens that a vector of states meets

// Up to TOGETHER tokens as one head hears them; B and C widened, zeros beyond N.
struct Tokens {
  float step[TOGETHER], decay[TOGETHER];
  uint32_t token[TOGETHER];     // what their states are rounded by, if they are; then W rows and all columns
  float written[TOGETHER][W];   // x times the step size of W channels
  uint32_t rows[TOGETHER][W];
  uint32_t* columns;            // rows `whole` apart, as those of B and C
  float *B, *C;
  float* states;                // room for [P, N] states, which peek carries to the next tokens
  int64_t whole;

  Tokens(int64_t P, int64_t N) : whole((N + W - 1) / W * W) {
    B = Scratch<Tokens>::of<float>(3 * TOGETHER * whole + P * N);
    C = B + TOGETHER * whole, columns = reinterpret_cast<uint32_t*>(C + TOGETHER * whole);
    states = C + 2 * TOGETHER * whole;
  }

  // Token k: its step size, the head's rate, and what it writes.
  template <class T>
  void set(int k, float dt, float rate, const T* row, int64_t N) {
    step[k] = dt;
    decay[k] = exp(splat(dt * rate))[0];
    widen_row(row, B + k * whole, N);
  }

  template <class T>
  static void widen_row(const T* row, float* wide, int64_t N) {
    for (int64_t n = 0; n < N; n += W) store(wide + n, load_upto(row + n, N - n));
  }

  void round_by(int k, uint32_t seed, int64_t N) { column_seeds(token[k] = seed, N, columns + k * whole); }

  // x of K tokens, rows `stride` apart, at the first of `count` channels, which is `row` among those of all heads.
  template <class Z, class T>
  void write(int K, const T* x, int64_t stride, int64_t row, int64_t count) {
    for (int k = 0; k < K; k++) {
      store(written[k], load_upto(x + k * stride, count) * splat(step[k]));
      if constexpr (std::is_same_v<Z, float>) continue;
      vu own = row_seeds(token[k], row);
      std::memcpy(rows[k], &own, sizeof own);
    }
  }
};

// `count` channels of states `in` [count, N] meet K tokens and are stored to `out` if there is any. With HEARD,
// heard[k][i] gets the products of channel i's state with C, still to be summed.
template <int K, bool HEARD, class Z>
void meet(const Z* in, Z* out, const Tokens& t, int64_t count, int64_t N, vf (*heard)[W]) {
  for (int64_t i = 0; i < count; i++, in += N, out += out ? N : 0) {
    vf decay[K], from[K], total[K] = {};
    for (int k = 0; k < K; k++) decay[k] = splat(t.decay[k]), from[k] = splat(t.written[k][i]);
    int64_t n = 0;
    // two at a time, because a token waits for the one before
    for (; n + 2 * W <= N; n += 2 * W) {
      vf state = load(in + n), next = load(in + n + W);
      for (int k = 0; k < K; k++) {
        const float *B = t.B + k * t.whole + n, *C = t.C + k * t.whole + n;
        state = advance(state, decay[k], from[k], load(B));
        next = advance(next, decay[k], from[k], load(B + W));
        if (HEARD) total[k] = fma(next, load(C + W), fma(state, load(C), total[k]));
        if (k + 1 == K && !out) break;
        const uint32_t* columns = t.columns + k * t.whole + n;
        state = kept<Z>(state, t.rows[k][i], columns);
        next = kept<Z>(next, t.rows[k][i], columns + W);
      }
      if (out) store(out + n, state), store(out + n + W, next);
    }
    for (; n < N; n += W) {
      vf state = load_upto(in + n, N - n);
      for (int k = 0; k < K; k++) {
        state = advance(state, decay[k], from[k], load(t.B + k * t.whole + n));
        if (HEARD) total[k] = fma(state, load(t.C + k * t.whole + n), total[k]);
        state = kept<Z>(state, t.rows[k][i], t.columns + k * t.whole + n);
      }
      if (out) store_upto(out + n, state, N - n);
    }
    for (int k = 0; k < K && HEARD; k++) heard[k][i] = total[k];
  }
  for (int64_t i = count; i < W && HEARD; i++)
    for (int k = 0; k < K; k++) heard[k][i] = vf{};
}

// `meet` for K tokens, from 1 to TOGETHER.
template <bool HEARD, int K = TOGETHER, class Z>
void meet_all(int tokens, const Z* in, Z* out, const Tokens& t, int64_t count, int64_t N, vf (*heard)[W]) {
  if constexpr (K > 1)
    if (tokens < K) return meet_all<HEARD, K - 1>(tokens, in, out, t, count, N, heard);
  meet<K, HEARD>(in, out, t, count, N, heard);
}

// f(sequence, head, Tokens) for every head of every sequence. Neighbours are other sequences, so that threads
// share sequences that bring many tokens.
template <class F>
void heads(int64_t S, int64_t H, int64_t P, int64_t N, const F& f) {
  share(S * H, 0.4 * double(P * N), [&](int64_t begin, int64_t end) {
    Tokens tokens(P, N);
    for (int64_t i = begin; i < end; i++) f(i % S, i / S, tokens);
  });
}

}  // namespace

void ssd_peek(Address x, int64_t x_step, int x_type, Address dt, int64_t dt_step, Address A, Address B,
              int64_t B_step, int B_type, Address C, int64_t C_step, int C_type, Address D, int D_type,
              Address bounds, Address state, Address past, uint32_t seed, Address y, int64_t S, int64_t H,
              int64_t P, int64_t G, int64_t N) {
  auto run = [&](auto* tx, auto* tb, auto* tc, auto* tz) {
    using X = std::remove_pointer_t<decltype(tx)>;
    using BT = std::remove_pointer_t<decltype(tb)>;
    using CT = std::remove_pointer_t<decltype(tc)>;
    using Z = std::remove_pointer_t<decltype(tz)>;
    heads(S, H, P, N, [&](int64_t s, int64_t h, Tokens& tokens) {
      int64_t group = h / (H / G) * N, begin = at<int32_t>(bounds)[s], end = at<int32_t>(bounds)[s + 1];
      float skip = Type(D_type) == Type::fp32 ? at<float>(D)[h] : widen(at<bf16>(D)[h]);
      const Z* in = at<Z>(state) + (s * H + h) * P * N;
      Z* carried = reinterpret_cast<Z*>(tokens.states);
      vf heard[TOGETHER][W];
      for (int64_t first = begin; first < end; first += TOGETHER, in = carried) {
        int K = int(std::min<int64_t>(TOGETHER, end - first));
        Z* out = first + K < end ? carried : nullptr;
        for (int k = 0; k < K; k++) {
          int64_t t = first + k;
          tokens.set(k, at<float>(dt)[t * dt_step + h], at<float>(A)[h], at<BT>(B) + t * B_step + group, N);
          if (past) tokens.round_by(k, token_seed(past, seed, s, t - begin), N);
          Tokens::widen_row(at<CT>(C) + t * C_step + group, tokens.C + k * tokens.whole, N);
        }
        for (int64_t p = 0; p < P; p += W) {
          int64_t count = std::min<int64_t>(W, P - p);
          const X* own = at<X>(x) + first * x_step + h * P + p;
          tokens.write<Z>(K, own, x_step, h * P + p, count);
          meet_all<true>(K, in + p * N, out ? out + p * N : nullptr, tokens, count, N, heard);
          for (int k = 0; k < K; k++)
            store_upto(at<X>(y) + ((first + k) * H + h) * P + p,
                       fma(splat(skip), load_upto(own + k * x_step, count), sums(heard[k])), count);
        }
      }
    });
  };
  with_type(x_type, [&](auto* tx) {
    with_type(B_type, [&](auto* tb) {
      with_type(C_type, [&](auto* tc) { with_state(past, [&](auto* tz) { run(tx, tb, tc, tz); }); });
    });
  });
}

void ssd_replay(Address state, Address past, uint32_t seed, Address x, int64_t x_step, int x_type, Address dt,
                int64_t dt_step, Address A, Address B, int64_t B_step, int B_type, Address bounds, Address counts,
                bool counts_wide, int64_t S, int64_t H, int64_t P, int64_t G, int64_t N) {
  auto run = [&](auto* tx, auto* tb, auto* tz) {
    using X = std::remove_pointer_t<decltype(tx)>;
    using BT = std::remove_pointer_t<decltype(tb)>;
    using Z = std::remove_pointer_t<decltype(tz)>;
    heads(S, H, P, N, [&](int64_t s, int64_t h, Tokens& tokens) {
      int64_t group = h / (H / G) * N, begin = at<int32_t>(bounds)[s];
      int64_t length = at<int32_t>(bounds)[s + 1] - begin;
      int64_t wanted = counts_wide ? at<int64_t>(counts)[s] : at<int32_t>(counts)[s];
      int64_t end = begin + std::min(wanted, length);
      for (int64_t first = begin; first < end; first += TOGETHER) {
        int K = int(std::min<int64_t>(TOGETHER, end - first));
        for (int k = 0; k < K; k++) {
          int64_t t = first + k;
          tokens.set(k, at<float>(dt)[t * dt_step + h], at<float>(A)[h], at<BT>(B) + t * B_step + group, N);
          if (past) tokens.round_by(k, token_seed(past, seed, s, t - begin), N);
        }
        for (int64_t p = 0; p < P; p += W) {
          int64_t count = std::min<int64_t>(W, P - p);
          Z* own = at<Z>(state) + ((s * H + h) * P + p) * N;
          tokens.write<Z>(K, at<X>(x) + first * x_step + h * P + p, x_step, h * P + p, count);
          meet_all<false>(K, own, own, tokens, count, N, nullptr);
        }
      }
    });
  };
  with_type(x_type, [&](auto* tx) {
    with_type(B_type, [&](auto* tb) { with_state(past, [&](auto* tz) { run(tx, tb, tz); }); });
  });
}

}  // namespace FATHOM_TIER
