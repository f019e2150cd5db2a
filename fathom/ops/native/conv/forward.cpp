// The convolution forward: y_t = silu(bias + sum_j w_j x_(t - k + 1 + j)), and the tails that follow.
//
// Promise: the sum of a token begins with the bias and adds its taps from the oldest to the present one,
// however tokens are grouped. `tail_out` may be `tail` where every sequence has one token.
#include "conv/conv.h"
#include "conv/window.h"

#include "core/parallel.h"

namespace FATHOM_TIER {

// Tokens of one task: as many as make reading the taps cheap.
constexpr int64_t TOKENS = 32;

// R tokens from the place p on, n channels; K taps, or any number where K is 0. y has rows of c values.
template <int K, int R, class T>
static void tokens(const Inputs<T>& in, const Taps& taps, int64_t p, T* y, int64_t c, int64_t n) {
  const int64_t k = K ? K : in.older + 1;
  const T* rows[R + K];
  for (int r = 0; r < R + K - 1 && K > 0; r++) rows[r] = in.row(p - K + 1 + r);
  for (int64_t i = 0; i < n; i += W) {
    vf sums[R];
    for (int r = 0; r < R; r++) sums[r] = load(taps.bias() + i);
    if constexpr (K > 0) {
      vf heard[R + K - 1];
      for (int r = 0; r < R + K - 1; r++) heard[r] = load_upto(rows[r] + i, n - i);
      for (int j = 0; j < K; j++) {
        vf tap = load(taps.tap(j) + i);
        for (int r = 0; r < R; r++) sums[r] = fma(heard[r + j], tap, sums[r]);
      }
    } else {
      for (int64_t j = 0; j < k; j++) {
        vf tap = load(taps.tap(j) + i);
        for (int r = 0; r < R; r++)
          sums[r] = fma(load_upto(in.row(p + r - k + 1 + j) + i, n - i), tap, sums[r]);
      }
    }
    for (int r = 0; r < R; r++) store_upto(y + r * c + i, silu(sums[r]), n - i);
  }
}

template <int K, class T>
static void piece(const Inputs<T>& in, const Taps& taps, int64_t p, int64_t end, T* y, int64_t c,
                  int64_t n) {
  for (; p + 4 <= end; p += 4, y += 4 * c) tokens<K, 4>(in, taps, p, y, c, n);
  for (; p < end; p++, y += c) tokens<K, 1>(in, taps, p, y, c, n);
}

// The last k - 1 inputs of a sequence of `length` tokens, oldest first so that they may replace the tail.
template <class T>
static void keep_tail(const Inputs<T>& in, int64_t length, T* tail, int64_t n) {
  for (int64_t j = 0; j < in.older; j++)
    std::memmove(tail + j * in.c, in.row(length - in.older + j), n * sizeof(T));
}

// x [T, c] with rows `stride` apart, weight [c, k], bias [c], tail [S, k - 1, c] or none -> y [T, c] and
// tail_out [S, k - 1, c]
void conv(Address x, int64_t stride, Address weight, Address bias, Address tail, Address bounds,
          Address y, Address tail_out, int64_t S, int64_t T, int64_t c, int64_t k, int type,
          int weight_type, int bias_type) {
  const Sequences sequences{at<int32_t>(bounds), S};
  const int64_t runs = (c + CHANNELS - 1) / CHANNELS, blocks = (T + TOKENS - 1) / TOKENS;
  const double cost = 0.15 * double(std::min(T, TOKENS) * std::min(c, CHANNELS));
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    each(runs * blocks, cost, [&](int64_t task) {
      const int64_t first = task % runs * CHANNELS, n = std::min(CHANNELS, c - first);
      const int64_t from = task / runs * TOKENS, to = std::min(from + TOKENS, T);
      const Taps taps = taps_at(weight, bias, first, n, k, weight_type, bias_type);
      for (int64_t token = from, s = sequences.of(from); token < to; s++) {
        const int64_t begin = sequences.begin(s), end = sequences.end(s);
        const int64_t stop = std::min(end, to), older = s * (k - 1) * c + first;
        const Inputs<X> in{at<X>(x) + begin * stride + first, stride,
                           tail ? at<X>(tail) + older : nullptr, c, k - 1};
        X* out = at<X>(y) + token * c + first;
        if (k == 4)
          piece<4>(in, taps, token - begin, stop - begin, out, c, n);
        else
          piece<0>(in, taps, token - begin, stop - begin, out, c, n);
        if (stop == end) keep_tail(in, end - begin, at<X>(tail_out) + older, n);
        token = stop;
      }
    });
  });
}

// tail [S, k - 1, c] becomes the last k - 1 of itself and its sequence's first counts[s] inputs of x [T, c], rows
// `stride` apart; counts int32 or int64 [S], read when it runs, more than there are inputs counts as all.
void conv_keep(Address tail, Address x, int64_t stride, Address bounds, Address counts, bool counts_wide,
               int64_t S, int64_t c, int64_t k, int type) {
  const Sequences sequences{at<int32_t>(bounds), S};
  const int64_t runs = (c + CHANNELS - 1) / CHANNELS;
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    each(runs * S, 0.1 * double(std::min(c, CHANNELS) * (k - 1)), [&](int64_t task) {
      const int64_t first = task % runs * CHANNELS, s = task / runs, begin = sequences.begin(s);
      const int64_t wanted = counts_wide ? at<int64_t>(counts)[s] : at<int32_t>(counts)[s];
      const int64_t count = std::min(wanted, sequences.end(s) - begin);
      X* own = at<X>(tail) + s * (k - 1) * c + first;
      const Inputs<X> in{at<X>(x) + begin * stride + first, stride, own, c, k - 1};
      if (count > 0) keep_tail(in, count, own, std::min(CHANNELS, c - first));
    });
  });
}

}  // namespace FATHOM_TIER
