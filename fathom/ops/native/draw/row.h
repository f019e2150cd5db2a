// One row of logits as a draw sees it: tokens that are not allowed count as -inf.
//
// Promise: a result depends on the row alone; sums are made in one fixed order.
#pragma once

#include <algorithm>

#include "draw/wide.h"

namespace FATHOM_TIER {

constexpr int64_t DEPTH = 16;          // tokens of a group
constexpr int64_t CHUNK = DEPTH * W;   // W groups; group i of a chunk has every W-th token from the i-th on
constexpr int64_t BLOCK = 256;         // tokens whose shares are one sum

// A sum of many numbers whose rounding is made good.
struct Compensated {
  vf total{}, lost{};

  void add(vf x) {
    vf y = x - lost, t = total + y;
    lost = (t - total) - y;
    total = t;
  }
  double value() const {
    double sum = 0;
    for (int i = 0; i < W; i++) sum += double(total[i]) - double(lost[i]);
    return sum;
  }
};

template <bool MASKED>
class Row {
 public:
  const float* x;           // [V]
  const uint32_t* allowed;  // [ceil(V / 32)]: bit i of word w is token 32 w + i
  int64_t V;

  bool allows(int64_t v) const { return !MASKED || (allowed[v / 32] >> (v % 32) & 1); }

  // W logits from v on, v a multiple of W.
  vf seen(int64_t v) const {
    vf y;
    if (v + W <= V) {
      y = load(x + v);
    } else {
      float held[W];
      std::fill(std::copy(x + v, x + V, held), held + W, -INFINITY);
      y = load(held);
    }
    if constexpr (MASKED) {
      vi bits;
      for (int i = 0; i < W; i++) bits[i] = 1 << i;
      bits &= vi{} + int32_t(allowed[v / 32] >> (v % 32));
      y = bits != 0 ? y : splat(-INFINITY);
    }
    return y;
  }

  int64_t groups() const { return (V + CHUNK - 1) / CHUNK * W; }

  // The greatest logit; tops [groups] gets that of every group. NaN may be passed over.
  float highest(float* tops) const {
    vf most = splat(-INFINITY);
    for (int64_t first = 0; first < V; first += CHUNK, tops += W) {
      vf top[4] = {most, most, most, most};
      for (vf& own : top) own = splat(-INFINITY);
      if (first + CHUNK <= V) {
        for (int64_t i = 0; i < DEPTH; i++) top[i % 4] = max(top[i % 4], seen(first + i * W));
      } else {
        for (int64_t v = first; v < V; v += W) top[0] = max(top[0], seen(v));
      }
      vf own = max(max(top[0], top[1]), max(top[2], top[3]));
      store(tops, own);
      most = max(most, own);
    }
    return max(most);
  }

  // The first token whose logit is `best`, which is the greatest of tops.
  int64_t first_of(float best, const float* tops) const {
    const int64_t v = (std::find(tops, tops + groups(), best) - tops) / W * CHUNK;
    int64_t token = v;
    while (token + 1 < V && !(x[token] == best && allows(token))) token++;
    return token;
  }

  // Sum of e^(x - best) over what is seen; NaN where a logit is.
  double weight(float best) const {
    Compensated even, odd;
    for (int64_t v = 0; v < V; v += 2 * W) {
      even.add(exp(seen(v) - splat(best)));
      if (v + W < V) odd.add(exp(seen(v + W) - splat(best)));
    }
    return even.value() + odd.value();
  }

  // Sum of the shares e^((x - best) / T) of the BLOCK tokens from v on, `inverse` being 1 / T. If there is
  // `shares` [BLOCK] they are written there.
  double block(int64_t v, float best, double inverse, double* shares) const {
    vd low{}, high{};
    for (const int64_t end = std::min(V, v + BLOCK); v < end; v += W) {
      vf y = seen(v);
      vd a = exp((widened<0>(y) - double(best)) * inverse), b = exp((widened<1>(y) - double(best)) * inverse);
      low += a, high += b;
      if (shares) store(shares, a), store(shares + W / 2, b), shares += W;
    }
    return sum(low + high);
  }
};

}  // namespace FATHOM_TIER
