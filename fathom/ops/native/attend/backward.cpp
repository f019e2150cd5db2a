// Gradients of attention over fresh sequences, all in fp32.
//
// Promise: weights are computed again from each row's logarithm; a first walk goes from queries over keys (dq), a
// second one from keys over queries (dk, dv), so every sum has one owner and one order, whatever the threads.
#include <vector>

#include "attend/attend.h"
#include "attend/pages.h"
#include "attend/product.h"
#include "attend/scratch.h"
#include "attend/softmax.h"

namespace FATHOM_TIER {

// Queries that are looked at together.
constexpr int64_t ROW_TILE = 64;

// Rows or keys from `begin` of sequence s and key-value head `head`.
struct Share {
  int64_t s, head, begin;
};

template <class X>
struct Backward {
  // keys turned [d, P], values turned [d, P] and keys [P, D] of a page
  const Pages &turned, &rows;
  const X *q, *y, *dy;
  int64_t q_stride, dy_stride, H, G;
  const float* lse;
  float* delta;
  X *dq, *dk, *dv;

  struct Room {
    float *query, *dout;   // [ROW_TILE, D]
    float *weight, *slope; // [ROW_TILE, P]: p, and the gradient of the scores
    float *sum, *other;    // [max(ROW_TILE, P), D]
  };

  Room room() const {
    thread_local Scratch scratch;
    const int64_t D = turned.D, P = turned.P, most = std::max(ROW_TILE, P);
    scratch.reserve((2 * ROW_TILE * (D + P) + 2 * most * D) * 4 + 1024);
    Room r;
    r.query = scratch.take<float>(ROW_TILE * D);
    r.dout = scratch.take<float>(ROW_TILE * D);
    r.weight = scratch.take<float>(ROW_TILE * P);
    r.slope = scratch.take<float>(ROW_TILE * P);
    r.sum = scratch.take<float>(most * D);
    r.other = scratch.take<float>(most * D);
    return r;
  }

  // Where row i of sequence s is among [T, H].
  int64_t place(const Share& share, int64_t row) const {
    return (turned.begin(share.s) + row / G) * H + share.head * G + row % G;
  }

  static void widen_row(const X* from, float* to, int64_t d, int64_t D) {
    for (int64_t j = 0; j < D; j += W) store(to + j, j < d ? load_upto(from + j, d - j) : vf{});
  }

  void load_rows(const Room& r, const Share& share, int64_t row, int64_t n) const {
    const int64_t d = turned.d, D = turned.D;
    for (int64_t i = 0; i < n; i++) {
      int64_t at = place(share, row + i);
      widen_row(q + at / H * q_stride + at % H * d, r.query + i * D, d, D);
      widen_row(dy + at / H * dy_stride + at % H * d, r.dout + i * D, d, D);
    }
  }

  // n rows from `row` against `some` keys from `key`: p and p (dy v' - delta), zero where a key is not seen.
  void slopes(const Room& r, const Share& share, int64_t row, int64_t n, int64_t key, int64_t some) const {
    const int64_t d = turned.d, D = turned.D, P = turned.P, page = turned.page(share.s, key);
    const int64_t wide = (some + W - 1) / W * W;
    const float c = float(1.0 / std::sqrt(double(d)) * LOG2_E);
    product<Plain>(r.query, D, 1, turned.template key_block<float>(page, share.head), P, r.weight, P, d, n, wide,
                   false);
    product<Plain>(r.dout, D, 1, rows.template key_block<float>(page, share.head), P, r.slope, P, d, n, wide, false);
    for (int64_t i = 0; i < n; i++) {
      int64_t at = place(share, row + i), seen = std::min(some, (row + i) / G + 1 - key);
      vf sum = splat(-lse[at]), less = splat(delta[at]);
      float *p = r.weight + i * P, *ds = r.slope + i * P;
      for (int64_t j = 0; j < wide; j += W) {
        vf weight = exp2(fma(load(p + j), splat(c), sum)), slope = weight * (load(ds + j) - less);
        if (seen - j < W) {
          vi kept = lanes() < int32_t(std::max<int64_t>(seen - j, 0));
          weight = kept ? weight : vf{};
          slope = kept ? slope : vf{};
        }
        store(p + j, weight);
        store(ds + j, slope);
      }
    }
  }

  void write(const float* from, X* to, float scale) const {
    for (int64_t j = 0; j < turned.d; j += W) store_upto(to + j, load(from + j) * splat(scale), turned.d - j);
  }

  float scale() const { return float(1.0 / std::sqrt(double(turned.d))); }

  void queries(const Share& share, int64_t all) const {
    Room r = room();
    const int64_t d = turned.d, D = turned.D, P = turned.P, n = std::min(ROW_TILE, all - share.begin);
    load_rows(r, share, share.begin, n);
    for (int64_t i = 0; i < n; i++) {
      int64_t at = place(share, share.begin + i);
      vf total{};
      for (int64_t j = 0; j < d; j += W)
        total = fma(load(r.dout + i * D + j), load_upto(y + at * d + j, d - j), total);
      delta[at] = sum(total);
    }
    const int64_t seen = (share.begin + n - 1) / G + 1;
    for (int64_t key = 0; key < seen; key += P) {
      int64_t some = std::min(P, seen - key);
      slopes(r, share, share.begin, n, key, some);
      const float* k = rows.template value_block<float>(turned.page(share.s, key), share.head);
      product<Plain>(r.slope, P, 1, k, D, r.sum, D, some, n, D, key > 0);
    }
    for (int64_t i = 0; i < n; i++) write(r.sum + i * D, dq + place(share, share.begin + i) * d, scale());
  }

  void keys(const Share& share, int64_t all) const {
    Room r = room();
    const int64_t d = turned.d, D = turned.D, P = turned.P, key = share.begin, first = key * G;
    const int64_t some = std::min(P, all / G - key);
    for (int64_t row = first; row < all; row += ROW_TILE) {
      int64_t n = std::min(ROW_TILE, all - row);
      load_rows(r, share, row, n);
      slopes(r, share, row, n, key, some);
      product<Plain>(r.weight, 1, P, r.dout, D, r.sum, D, n, some, D, row > first);
      product<Plain>(r.slope, 1, P, r.query, D, r.other, D, n, some, D, row > first);
    }
    for (int64_t i = 0; i < some; i++) {
      int64_t to = ((turned.begin(share.s) + key + i) * turned.h + share.head) * d;
      write(r.sum + i * D, dv + to, 1.0f);
      write(r.other + i * D, dk + to, scale());
    }
  }
};

void attend_backward(Address q, int64_t q_stride, int type, Address y, Address dy, int64_t dy_stride, Address lse,
                     Address delta, Address k_turned, Address v_turned, Address k_rows, Address table, Address past,
                     Address offsets, int64_t each_, int64_t S, int64_t H, int64_t h, int64_t d, int64_t B, int64_t P,
                     int64_t count, Address dq, Address dk, Address dv) {
  Pages turned(k_turned, 0, table, past, offsets, each_, S, h, d, B, P, count);
  Pages rows(v_turned, k_rows, table, past, offsets, each_, S, h, d, B, P, count);
  turned.check("attend: backward", [](int64_t) { return int64_t(0); });
  const int64_t G = H / h;
  std::vector<Share> by_query, by_key;
  double work = 0;
  for (int64_t s = 0; s < S; s++) {
    const int64_t tokens = turned.fresh(s), all = tokens * G;
    work += double(all * h) * double(tokens) / 2;
    for (int64_t head = 0; head < h; head++) {
      // the longest first
      for (int64_t row = (all - 1) / ROW_TILE * ROW_TILE; row >= 0; row -= ROW_TILE) by_query.push_back({s, head, row});
      for (int64_t key = 0; key < tokens; key += P) by_key.push_back({s, head, key});
    }
  }
  const double cost = 8.0 * double(d) / 25.0 * work;
  with_type(type, [&](auto* x) {
    using X = std::remove_pointer_t<decltype(x)>;
    Backward<X> b{turned,          rows,         at<X>(q),  at<X>(y),  at<X>(dy), q_stride, dy_stride, H, G,
                  at<float>(lse), at<float>(delta), at<X>(dq), at<X>(dk), at<X>(dv)};
    each(int64_t(by_query.size()), cost / double(by_query.size()),
         [&](int64_t i) { b.queries(by_query[i], turned.fresh(by_query[i].s) * G); });
    each(int64_t(by_key.size()), cost / double(by_key.size()),
         [&](int64_t i) { b.keys(by_key[i], turned.fresh(by_key[i].s) * G); });
  });
}

}  // namespace FATHOM_TIER
