// Attention over pages beside plain loops.
#include "attend/attend.h"

#include <algorithm>
#include <numeric>

#include "driver.h"

namespace FATHOM_TIER {

struct Heads {
  int64_t H, h, d;
};

// Each sequence comes in two calls: its past, then its tokens. Pages are handed out in a mixed order.
template <class X>
static void check(Draw& draw, const std::vector<int32_t>& past, const std::vector<int32_t>& lengths, Heads n, int64_t P,
                  int kv_type) {
  const int64_t S = int64_t(lengths.size()), D = (n.d + 15) / 16 * 16;
  std::vector<int32_t> zeros(S), before{0}, now{0}, table;
  int64_t B = 0, used = 0;
  for (int64_t s = 0; s < S; s++) {
    before.push_back(before.back() + past[s]);
    now.push_back(now.back() + lengths[s]);
    B = std::max<int64_t>(B, (past[s] + lengths[s] + P - 1) / P);
  }
  const int64_t pages = S * B + 1;
  for (int64_t i = 0; i < S * B; i++) table.push_back(int32_t(pages - 1 - used++));
  const int64_t T = now.back(), older = std::max<int32_t>(before.back(), 1), values = pages * n.h * P;
  auto q = draw.normal<X>(T, n.H * n.d, n.H * n.d + 3);
  auto k = draw.normal<X>(T, n.h * n.d, n.h * n.d + 5), v = draw.normal<X>(T, n.h * n.d);
  auto old_k = draw.normal<X>(older, n.h * n.d), old_v = draw.normal<X>(older, n.h * n.d);
  const int64_t wide = kv_type == 0 ? 4 : kv_type == 1 ? 2 : 1;
  std::vector<uint8_t> keys(values * n.d * wide, 0xff), held(values * D * wide, 0xff);
  Table<X> y(T, n.H * n.d);
  Table<float> lse(T, n.H);
  const auto append = [&](Table<X>& k, Table<X>& v, std::vector<int32_t>& past, std::vector<int32_t>& offsets) {
    attend_append(k.address(), k.stride, code<X>, v.address(), v.stride, Address(keys.data()), Address(held.data()),
                  kv_type, Address(table.data()), Address(past.data()), Address(offsets.data()), 0, S, offsets.back(),
                  n.h, n.d, B, P, pages, 1.0, 1.0);
  };
  std::vector<int32_t> had = past;
  if (before.back()) append(old_k, old_v, zeros, before);
  append(k, v, had, now);
  attend_forward(q.address(), q.stride, code<X>, y.address(), lse.address(), Address(keys.data()),
                 Address(held.data()), kv_type, Address(table.data()), Address(had.data()), Address(now.data()), 0, S,
                 T, n.H, n.h, n.d, B, P, pages, 1.0, 1.0);

  const double near = kv_type == 2 ? 6e-2 : kv_type == 1 ? 8e-3 : allowed<X>;
  const std::string name = named("", T, S, n.H, n.h, n.d, P, kv_type);
  Compare ys("attend" + name, near), sums("attend lse" + name, kv_type ? 4 * near : near);
  for (int64_t s = 0; s < S; s++)
    for (int64_t i = 0; i < lengths[s]; i++)
      for (int64_t head = 0; head < n.H; head++) {
        const int64_t first = head / (n.H / n.h) * n.d, token = now[s] + i;
        double total = 0;
        std::vector<double> out(n.d);
        for (int64_t j = 0; j <= past[s] + i; j++) {
          const bool old = j < past[s];
          const int64_t row = old ? before[s] + j : now[s] + j - past[s];
          double score = 0;
          for (int64_t c = 0; c < n.d; c++)
            score += q(token, head * n.d + c) * (old ? old_k(row, first + c) : k(row, first + c));
          const double weight = std::exp(score / std::sqrt(double(n.d)));
          total += weight;
          for (int64_t c = 0; c < n.d; c++) out[c] += weight * (old ? old_v(row, first + c) : v(row, first + c));
        }
        sums(lse(token, head), std::log2(total));
        for (int64_t c = 0; c < n.d; c++) ys(y(token, head * n.d + c), out[c] / total);
      }
}

// Fresh sequences, forward and backward; pages of 16 tokens, in order.
template <class X>
static void check_backward(Draw& draw, const std::vector<int32_t>& lengths, Heads n) {
  constexpr int64_t P = 16;
  const int64_t S = int64_t(lengths.size()), D = (n.d + 15) / 16 * 16;
  std::vector<int32_t> past(S), bounds{0}, table;
  int64_t B = 0;
  for (int32_t length : lengths) {
    bounds.push_back(bounds.back() + length);
    B = std::max<int64_t>(B, (length + P - 1) / P);
  }
  const int64_t T = bounds.back(), pages = S * B;
  for (int64_t i = 0; i < pages; i++) table.push_back(int32_t(i));
  auto q = draw.normal<X>(T, n.H * n.d, n.H * n.d + 3), dy = draw.normal<X>(T, n.H * n.d, n.H * n.d + 1);
  auto k = draw.normal<X>(T, n.h * n.d), v = draw.normal<X>(T, n.h * n.d);
  Table<X> y(T, n.H * n.d), dq(T, n.H * n.d), dk(T, n.h * n.d), dv(T, n.h * n.d);
  Table<float> lse(T, n.H), delta(T, n.H), k_turned(pages * n.h, n.d * P), v_turned(pages * n.h, n.d * P),
      v_rows(pages * n.h, D * P), k_rows(pages * n.h, D * P);
  const Address offsets = Address(bounds.data()), zero = Address(past.data()), map = Address(table.data());
  const auto append = [&](Table<X>& keys, Table<X>& values, Table<float>& turned, Table<float>& rows) {
    attend_append(keys.address(), keys.stride, code<X>, values.address(), values.stride, turned.address(),
                  rows.address(), 0, map, zero, offsets, 0, S, T, n.h, n.d, B, P, pages, 1.0, 1.0);
  };
  append(k, v, k_turned, v_rows);
  append(v, k, v_turned, k_rows);
  attend_forward(q.address(), q.stride, code<X>, y.address(), lse.address(), k_turned.address(), v_rows.address(), 0,
                 map, zero, offsets, 0, S, T, n.H, n.h, n.d, B, P, pages, 1.0, 1.0);
  attend_backward(q.address(), q.stride, code<X>, y.address(), dy.address(), dy.stride, lse.address(),
                  delta.address(), k_turned.address(), v_turned.address(), k_rows.address(), map, zero, offsets, 0, S,
                  n.H, n.h, n.d, B, P, pages, dq.address(), dk.address(), dv.address());

  std::vector<double> wq(T * n.H * n.d), wk(T * n.h * n.d), wv(T * n.h * n.d);
  const double root = 1 / std::sqrt(double(n.d));
  for (int64_t s = 0; s < S; s++)
    for (int64_t i = bounds[s]; i < bounds[s + 1]; i++)
      for (int64_t head = 0; head < n.H; head++) {
        const int64_t own = head * n.d, first = head / (n.H / n.h) * n.d, count = i - bounds[s] + 1;
        std::vector<double> p(count), dp(count);
        double total = 0, mean = 0;
        for (int64_t j = 0; j < count; j++) {
          double score = 0;
          for (int64_t c = 0; c < n.d; c++) {
            score += q(i, own + c) * k(bounds[s] + j, first + c);
            dp[j] += dy(i, own + c) * v(bounds[s] + j, first + c);
          }
          total += p[j] = std::exp(score * root);
        }
        for (int64_t j = 0; j < count; j++) p[j] /= total, mean += p[j] * dp[j];
        for (int64_t j = 0; j < count; j++) {
          const double dscore = p[j] * (dp[j] - mean) * root;
          const int64_t row = (bounds[s] + j) * n.h * n.d + first;
          for (int64_t c = 0; c < n.d; c++) {
            wq[i * n.H * n.d + own + c] += dscore * k(bounds[s] + j, first + c);
            wk[row + c] += dscore * q(i, own + c);
            wv[row + c] += p[j] * dy(i, own + c);
          }
        }
      }
  const std::string name = named("", T, S, n.H, n.h, n.d);
  const double near = 4 * allowed<X>;
  compare("attend dq" + name, dq, near, [&](int64_t r, int64_t c) { return wq[r * dq.columns + c]; });
  compare("attend dk" + name, dk, near, [&](int64_t r, int64_t c) { return wk[r * dk.columns + c]; });
  compare("attend dv" + name, dv, near, [&](int64_t r, int64_t c) { return wv[r * dv.columns + c]; });
}

void check_attend(Draw& draw) {
  for_types([&](auto x) {
    for (const Heads& n : {Heads{2, 1, 8}, {4, 2, 20}, {6, 3, 64}})
      for (const auto& lengths : std::vector<std::vector<int32_t>>{{1}, {3, 70, 17}, {130}})
        check_backward<decltype(x)>(draw, lengths, n);
    for (int kv_type : {0, 1, 2})
      for (const Heads& n : {Heads{2, 1, 8}, {4, 2, 20}, {6, 3, 64}})
        for (int64_t P : {16, 64}) {
          check<decltype(x)>(draw, {0}, {1}, n, P, kv_type);
          check<decltype(x)>(draw, {0, 0, 0}, {3, 70, 17}, n, P, kv_type);
          check<decltype(x)>(draw, {5, 130}, {1, 1}, n, P, kv_type);
          check<decltype(x)>(draw, {17, 0, 64}, {20, 1, 3}, n, P, kv_type);
        }
  });
}

}  // namespace FATHOM_TIER
