// The convolution backward, with the sums before SiLU computed again: nothing is kept but the inputs.
//
// With s_t the sum before SiLU and e_t = dy_t silu'(s_t):
//   dx_t = sum_b w_(k - 1 - b) e_(t + b), dw_(k - 1 - b) = sum_t e_t x_(t - b), dbias = sum_t e_t.
// Promise: sums over tokens are made in ranges of CONV_RANGE tokens, then range by range, whatever the
// number of threads.
#include "conv/conv.h"
#include "conv/window.h"

#include "core/parallel.h"

namespace FATHOM_TIER {

// Tokens whose e lie in the cache together.
constexpr int64_t HELD = 64;

// What a task knows of one sequence in its run of n channels.
template <class T>
struct Piece {
  Inputs<T> in;
  const T* dy;         // first token of the sequence, rows c apart
  const T* dtail_out;  // [k - 1] rows c apart; or null
  T* dx;               // first token, rows c apart
  T* dtail;            // [k - 1] rows c apart; or null
  int64_t length, c, n, k;
};

// e [rows of CHANNELS] of the places [p, end); `rows` are the inputs from the place p - (k - 1) on.
template <class T>
static void errors(const Piece<T>& s, const Taps& taps, int64_t p, int64_t end,
                   const T* const* rows, float* e) {
  for (; p < end; p++, rows++, e += CHANNELS) {
    for (int64_t i = 0; i < s.n; i += W) {
      vf sum = load(taps.bias() + i);
      for (int64_t j = 0; j < s.k; j++)
        sum = fma(load_upto(rows[j] + i, s.n - i), load(taps.tap(j) + i), sum);
      vf gate = sigmoid(sum);
      vf slope = gate * fma(sum, splat(1.0f) - gate, splat(1.0f));
      store(e + i, load_upto(s.dy + p * s.c + i, s.n - i) * slope);
    }
  }
}

// The gradient of the input at the places [p, end), p >= -(k - 1); e begins at the place `first`.
template <class T>
static void inputs(const Piece<T>& s, const Taps& taps, int64_t p, int64_t end, const float* e,
                   int64_t first) {
  for (; p < end; p++) {
    const int64_t kept = p - s.length + s.k - 1;  // its row in the next tail, if not negative
    const int64_t from = std::max<int64_t>(0, -p), to = std::min(s.k, s.length - p);
    T* dx = p >= 0 ? s.dx + p * s.c : s.dtail + (s.k - 1 + p) * s.c;
    for (int64_t i = 0; i < s.n; i += W) {
      vf sum{};
      if (s.dtail_out && kept >= 0) sum = load_upto(s.dtail_out + kept * s.c + i, s.n - i);
      for (int64_t b = from; b < to; b++)
        sum = fma(load(e + (p + b - first) * CHANNELS + i), load(taps.tap(s.k - 1 - b) + i), sum);
      store_upto(dx + i, sum, s.n - i);
    }
  }
}

// Adds the sums over `count` places to `sums`, rows of `c` values for each tap and the bias last.
template <class T>
static void weights(const Piece<T>& s, int64_t count, const T* const* rows, const float* e,
                    float* sums) {
  for (int64_t i = 0; i < s.n; i += W) {
    float* own = sums + i;
    for (int64_t j = 0; j < s.k; j += 2) {
      const int64_t next = std::min(j + 1, s.k - 1);
      vf a = load_upto(own + j * s.c, s.n - i), b = load_upto(own + next * s.c, s.n - i);
      for (int64_t q = 0; q < count; q++) {
        vf error = load(e + q * CHANNELS + i);
        a = fma(error, load_upto(rows[q + j] + i, s.n - i), a);
        b = fma(error, load_upto(rows[q + next] + i, s.n - i), b);
      }
      store_upto(own + next * s.c, b, s.n - i);
      store_upto(own + j * s.c, a, s.n - i);
    }
    vf bias = load_upto(own + s.k * s.c, s.n - i);
    for (int64_t q = 0; q < count; q++) bias = bias + load(e + q * CHANNELS + i);
    store_upto(own + s.k * s.c, bias, s.n - i);
  }
}

// dy [T, c], dtail_out [S, k - 1, c] or none, the inputs of the forward pass -> dx [T, c], dtail
// [S, k - 1, c] (if there is a tail), dweight [c, k] and dbias [c] in fp32;
// partial [ceil(T / CONV_RANGE), k + 1, c] fp32 is scratch
void conv_backward(Address dy, Address dtail_out, Address x, int64_t stride, Address weight,
                   Address bias, Address tail, Address bounds, Address dx, Address dtail,
                   Address partial, Address dweight, Address dbias, int64_t S, int64_t T, int64_t c,
                   int64_t k, int type, int weight_type, int bias_type) {
  const Sequences sequences{at<int32_t>(bounds), S};
  const int64_t runs = (c + CHANNELS - 1) / CHANNELS, ranges = (T + CONV_RANGE - 1) / CONV_RANGE;
  const double cost = 0.5 * double(std::min(T, CONV_RANGE) * std::min(c, CHANNELS));
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    each(runs * ranges, cost, [&](int64_t task) {
      const int64_t first = task % runs * CHANNELS, n = std::min(CHANNELS, c - first);
      const int64_t from = task / runs * CONV_RANGE, to = std::min(from + CONV_RANGE, T);
      const Taps taps = taps_at(weight, bias, first, n, k, weight_type, bias_type);
      float* sums = at<float>(partial) + task / runs * (k + 1) * c + first;
      for (int64_t j = 0; j <= k; j++) std::fill_n(sums + j * c, n, 0.0f);
      std::vector<float> held((HELD + k - 1) * CHANNELS);
      std::vector<const X*> rows(HELD + 2 * (k - 1));
      for (int64_t token = from, s = sequences.of(from); token < to; s++) {
        const int64_t begin = sequences.begin(s), end = sequences.end(s);
        const int64_t here = begin * c + first, older = s * (k - 1) * c + first;
        const Piece<X> piece{{at<X>(x) + begin * stride + first, stride,
                              tail ? at<X>(tail) + older : nullptr, c, k - 1},
                             at<X>(dy) + here,
                             dtail_out ? at<X>(dtail_out) + older : nullptr,
                             at<X>(dx) + here,
                             tail ? at<X>(dtail) + older : nullptr,
                             end - begin, c, n, k};
        const int64_t stop = std::min(end, to) - begin;
        for (int64_t p = token - begin; p < stop; p += HELD) {
          const int64_t q = std::min(p + HELD, stop), heard = std::min(q + k - 1, piece.length);
          for (int64_t r = p - k + 1; r < heard; r++) rows[r - p + k - 1] = piece.in.row(r);
          errors(piece, taps, p, heard, rows.data(), held.data());
          inputs(piece, taps, p == 0 && tail ? 1 - k : p, q, held.data(), p);
          weights(piece, q - p, rows.data(), held.data(), sums);
        }
        token = begin + stop;
      }
    });
  });
  share(c, 0.5 * double(ranges * (k + 1)), [&](int64_t from, int64_t to) {
    for (int64_t channel = from; channel < to; channel++)
      for (int64_t j = 0; j <= k; j++) {
        float sum = 0.0f;
        for (int64_t range = 0; range < ranges; range++)
          sum += at<float>(partial)[(range * (k + 1) + j) * c + channel];
        (j < k ? at<float>(dweight)[channel * k + j] : at<float>(dbias)[channel]) = sum;
      }
  });
}

}  // namespace FATHOM_TIER
