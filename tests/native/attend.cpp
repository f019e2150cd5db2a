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

void check_attend(Draw& draw) {
  for_types([&](auto x) {
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
