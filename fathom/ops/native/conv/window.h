// What forward and backward share: the inputs that a token hears, and the taps of a run of channels.
//
// Promise: a row before the beginning of its sequence is the tail's, or zeros; no row of another sequence
// is ever looked at.
#pragma once

#include <algorithm>
#include <vector>

#include "core/simd.h"
#include "core/types.h"

namespace FATHOM_TIER {

// Channels that a task works on: a few rows of them and their taps lie in the first cache.
constexpr int64_t CHANNELS = 256;

static constexpr float ZEROS[CHANNELS] = {};

// A ragged stream: which tokens belong to which sequence.
struct Sequences {
  const int32_t* bounds;  // [S + 1], or null: one token each
  int64_t S;

  int64_t begin(int64_t s) const { return bounds ? bounds[s] : s; }
  int64_t end(int64_t s) const { return bounds ? bounds[s + 1] : s + 1; }
  int64_t of(int64_t token) const {
    return bounds ? std::upper_bound(bounds, bounds + S + 1, int32_t(token)) - bounds - 1 : token;
  }
};

// The inputs of one sequence in a run of channels.
template <class T>
struct Inputs {
  const T* x;       // first token of the sequence, first channel of the run
  int64_t stride;   // between tokens
  const T* tail;    // oldest of the k - 1 rows before, first channel of the run; or null
  int64_t c;        // between rows of the tail
  int64_t older;    // k - 1

  // The row at a place p >= -(k - 1) of the sequence.
  const T* row(int64_t p) const {
    if (p >= 0) return x + p * stride;
    return tail ? tail + (older + p) * c : reinterpret_cast<const T*>(ZEROS);
  }
};

// Every second lane of a and b together, from the first (odd = 0) or the second one on.
template <int odd>
inline vf halved(vf a, vf b) {
#if defined(__GNUC__) && !defined(__clang__)
  vi places;
  for (int i = 0; i < W; i++) places[i] = 2 * i + odd;
  return __builtin_shuffle(a, b, places);
#else
  vf y;
  for (int i = 0; i < W / 2; i++) y[i] = a[2 * i + odd], y[i + W / 2] = b[2 * i + odd];
  return y;
#endif
}

// The taps and the bias of n <= CHANNELS channels in fp32, a row of CHANNELS values for each tap and the
// bias last; lanes beyond n are zero.
class Taps {
 public:
  Taps(int64_t k) : k_(k), held_((k + 1) * CHANNELS) {}

  const float* tap(int64_t j) const { return held_.data() + j * CHANNELS; }
  const float* bias() const { return held_.data() + k_ * CHANNELS; }

  // weight [n, k] and bias [n] at their channels
  template <class U, class B>
  void read(const U* weight, const B* bias, int64_t n) {
    int64_t i = 0;
    if (k_ == 4) {
      for (; i + W <= n; i += W) {
        const U* w = weight + i * 4;
        vf a = load(w), b = load(w + W), c = load(w + 2 * W), d = load(w + 3 * W);
        vf even0 = halved<0>(a, b), even1 = halved<0>(c, d);
        vf odd0 = halved<1>(a, b), odd1 = halved<1>(c, d);
        store(row(0) + i, halved<0>(even0, even1));
        store(row(1) + i, halved<0>(odd0, odd1));
        store(row(2) + i, halved<1>(even0, even1));
        store(row(3) + i, halved<1>(odd0, odd1));
      }
    }
    for (; i < n; i++)
      for (int64_t j = 0; j < k_; j++) row(j)[i] = widen(weight[i * k_ + j]);
    for (i = 0; i < n; i += W) store(row(k_) + i, load_upto(bias + i, n - i));
  }

 private:
  float* row(int64_t j) { return held_.data() + j * CHANNELS; }

  int64_t k_;
  std::vector<float> held_;
};

// The taps of the n channels from `first` on, of whatever types weight [c, k] and bias [c] are.
inline Taps taps_at(Address weight, Address bias, int64_t first, int64_t n, int64_t k,
                    int weight_type, int bias_type) {
  Taps taps(k);
  with_type(weight_type, [&](auto* u) {
    with_type(bias_type, [&](auto* b) {
      using U = std::remove_pointer_t<decltype(u)>;
      using B = std::remove_pointer_t<decltype(b)>;
      taps.read(at<U>(weight) + first * k, at<B>(bias) + first, n);
    });
  });
  return taps;
}

}  // namespace FATHOM_TIER
