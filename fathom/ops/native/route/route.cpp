// Routing: scores = sigmoid(x weight'), the K largest of scores + correction, their weights.
//
// Promise: chosen experts stand in the order of scores + correction, the largest first and the lower index
// first among equals; NaN counts as the largest. K different experts are chosen whatever the numbers are.
#include <algorithm>
#include <limits>

#include "core/parallel.h"
#include "route/route.h"

namespace FATHOM_TIER {

constexpr int32_t GONE = std::numeric_limits<int32_t>::min();

// Integers in the order of floats, all of them above GONE.
static vi order(vf x) {
  vi bits = vi(x + vf{});  // -0 becomes +0
  bits = bits ^ ((bits >> 31) & 0x7fffffff);
  return x == x ? bits : vi{} + std::numeric_limits<int32_t>::max();
}

// The place of the largest of keys [n], n a multiple of W; the first one among equals.
static int64_t largest(const int32_t* keys, int64_t n) {
  vi best, where{}, here{};
  std::memcpy(&best, keys, sizeof best);
  for (int64_t i = W; i < n; i += W) {
    vi own;
    std::memcpy(&own, keys + i, sizeof own);
    here = here + W;
    where = own > best ? here : where;
    best = own > best ? own : best;
  }
  int64_t place = where[0], lane = 0;
  for (int i = 1; i < W; i++) {
    const int64_t other = where[i] + i;
    if (best[i] > best[lane] || (best[i] == best[lane] && other < place)) place = other, lane = i;
  }
  return place;
}

// One token: logits become scores [E]; chosen and weights [K]; keys [E rounded up to W] is scratch.
static void choose(float* scores, const float* correction, int64_t* chosen, float* weights, int64_t E,
                   int64_t K, float scale, int32_t* keys) {
  const int64_t whole = (E + W - 1) / W * W;
  for (int64_t e = 0; e < E; e += W) {
    vf s = sigmoid(load_upto(scores + e, E - e));
    store_upto(scores + e, s, E - e);
    vi key = order(s + load_upto(correction + e, E - e));
    std::memcpy(keys + e, &key, sizeof key);
  }
  std::fill(keys + E, keys + whole, GONE);
  float total = 0.0f;
  for (int64_t k = 0; k < K; k++) {
    const int64_t e = largest(keys, whole);
    keys[e] = GONE;
    chosen[k] = e;
    weights[k] = scores[e];
    total += scores[e];
  }
  for (int64_t k = 0; k < K; k++) weights[k] = weights[k] / (total + 1e-20f) * scale;
}

// x [T, D] with rows `stride` apart, weight [E, D], correction [E] fp32 -> chosen [T, K] int64,
// weights [T, K] and scores [T, E] fp32
void route(Address x, int64_t stride, Address weight, Address correction, Address chosen,
           Address weights, Address scores, int64_t T, int64_t D, int64_t E, int64_t K, double scale,
           int type, int weight_type) {
  router_logits(x, stride, weight, at<float>(scores), T, D, E, type, weight_type);
  share(T, double(E) * (1.0 + 0.1 * double(K)), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> keys(E + W);
    for (int64_t i = begin; i < end; i++)
      choose(at<float>(scores) + i * E, at<float>(correction), at<int64_t>(chosen) + i * K,
             at<float>(weights) + i * K, E, K, float(scale), keys.data());
  });
}

}  // namespace FATHOM_TIER
