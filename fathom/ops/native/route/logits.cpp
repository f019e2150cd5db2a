// The router's products: logits = x weight', fp32 whatever goes in.
//
// Promise: a logit is one chain of multiply-adds over D in W lanes, then the sum of the lanes: the same bits
// for one token and for many. Tiles of tokens and experts only share what was read.
#include <algorithm>

#include "core/parallel.h"
#include "route/route.h"

namespace FATHOM_TIER {

constexpr int EXPERTS = 4;               // experts of a tile
constexpr int TOKENS = W == 16 ? 4 : 2;  // tokens of a tile: as many as there are registers for
constexpr int64_t BLOCK_T = 32, BLOCK_E = 16;  // tokens and experts of a task
constexpr int64_t DEPTH = 256;           // values of a row that lie in the first cache together

// One token: `sums` for R experts, whose rows are D apart.
template <int R, class X, class U>
static void one_token(const X* x, const U* weight, int64_t D, float* logits) {
  vf sums[R] = {};
  for (int64_t d = 0; d < D; d += W) {
    vf v = load_upto(x + d, D - d);
    for (int r = 0; r < R; r++) sums[r] = fma(v, load_upto(weight + r * D + d, D - d), sums[r]);
  }
  for (int r = 0; r < R; r++) logits[r] = sum(sums[r]);
}

// Adds to sums [A, B] (of vectors, rows BLOCK_E apart) a tile's products over n values, n a multiple of W.
template <int A, int B>
static void tile(const float* x, int64_t x_stride, const float* weight, int64_t w_stride, int64_t n,
                 vf* sums) {
  vf own[A][B];
  for (int a = 0; a < A; a++)
    for (int b = 0; b < B; b++) own[a][b] = sums[a * BLOCK_E + b];
  for (int64_t d = 0; d < n; d += W) {
    vf w[B];
    for (int b = 0; b < B; b++) w[b] = load(weight + b * w_stride + d);
    for (int a = 0; a < A; a++) {
      vf v = load(x + a * x_stride + d);
      for (int b = 0; b < B; b++) own[a][b] = fma(v, w[b], own[a][b]);
    }
  }
  for (int a = 0; a < A; a++)
    for (int b = 0; b < B; b++) sums[a * BLOCK_E + b] = own[a][b];
}

// Rows widened to fp32 and, at the end of a row, filled up with zeros to a multiple of W.
template <class T>
static void widen_rows(const T* rows, int64_t stride, int64_t count, int64_t n, float* held) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < n; d += W) store(held + i * DEPTH + d, load_upto(rows + i * stride + d, n - d));
}

// Logits of `tokens` <= BLOCK_T tokens and `experts` <= BLOCK_E experts.
template <class X, class U>
static void block(const X* x, int64_t stride, const U* weight, int64_t tokens, int64_t experts,
                  int64_t D, float* logits, int64_t E) {
  alignas(64) float x_held[BLOCK_T * DEPTH], w_held[BLOCK_E * DEPTH];
  vf sums[BLOCK_T * BLOCK_E] = {};
  for (int64_t first = 0; first < D; first += DEPTH) {
    const int64_t n = std::min(DEPTH, D - first), whole = (n + W - 1) / W * W;
    widen_rows(x + first, stride, tokens, n, x_held);
    widen_rows(weight + first, D, experts, n, w_held);
    for (int64_t e = 0; e < experts;) {
      const float* w = w_held + e * DEPTH;
      const bool many = e + EXPERTS <= experts;
      for (int64_t t = 0; t < tokens;) {
        const bool both = many && t + TOKENS <= tokens;
        vf* own = sums + t * BLOCK_E + e;
        if (both)
          tile<TOKENS, EXPERTS>(x_held + t * DEPTH, DEPTH, w, DEPTH, whole, own);
        else if (many)
          tile<1, EXPERTS>(x_held + t * DEPTH, DEPTH, w, DEPTH, whole, own);
        else
          tile<1, 1>(x_held + t * DEPTH, DEPTH, w, DEPTH, whole, own);
        t += both ? TOKENS : 1;
      }
      e += many ? EXPERTS : 1;
    }
  }
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t e = 0; e < experts; e++) logits[t * E + e] = sum(sums[t * BLOCK_E + e]);
}

void router_logits(Address x, int64_t stride, Address weight, float* logits, int64_t T, int64_t D,
                   int64_t E, int type, int weight_type) {
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    with_type(weight_type, [&](auto* u) {
      using U = std::remove_pointer_t<decltype(u)>;
      if (T == 1) {
        constexpr int R = 8;
        each((E + R - 1) / R, 0.1 * double(R * D), [&](int64_t task) {
          int64_t e = task * R, end = std::min(E, e + R);
          const U* w = at<U>(weight) + e * D;
          if (end - e == R) return one_token<R>(at<X>(x), w, D, logits + e);
          for (; e < end; e++, w += D) one_token<1>(at<X>(x), w, D, logits + e);
        });
        return;
      }
      const int64_t across = (E + BLOCK_E - 1) / BLOCK_E, down = (T + BLOCK_T - 1) / BLOCK_T;
      const double cost = 0.04 * double(std::min(T, BLOCK_T) * std::min(E, BLOCK_E) * D);
      each(across * down, cost, [&](int64_t task) {
        const int64_t e = task % across * BLOCK_E, i = task / across * BLOCK_T;
        block(at<X>(x) + i * stride, stride, at<U>(weight) + e * D, std::min(BLOCK_T, T - i),
              std::min(BLOCK_E, E - e), D, logits + i * E + e, E);
      });
    });
  });
}

}  // namespace FATHOM_TIER
