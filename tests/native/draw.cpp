// The draw beside a full sort in double.
#include "draw/draw.h"

#include <algorithm>
#include <numeric>

#include "driver.h"

namespace FATHOM_TIER {

struct Filters {
  double temperature, top_p, min_p;
  int64_t top_k;
};

// The token that a full sort of what is allowed gives, and its log-probability among what the filters leave.
static std::pair<int64_t, double> sorted(const Table<float>& x, int64_t s, const std::vector<uint32_t>& allowed,
                                         const Filters& f, double point) {
  const int64_t words = (x.columns + 31) / 32;
  std::vector<int64_t> left;
  for (int64_t v = 0; v < x.columns; v++)
    if (allowed[s * words + v / 32] >> (v % 32) & 1) left.push_back(v);
  const auto better = [&](int64_t a, int64_t b) { return x(s, a) > x(s, b); };
  const int64_t best = *std::min_element(left.begin(), left.end(), better);
  if (f.temperature == 0) return {best, 0.0};
  if (f.top_k || f.top_p < 1 || f.min_p > 0) std::stable_sort(left.begin(), left.end(), better);
  const auto share = [&](int64_t v) { return std::exp((x(s, v) - x(s, best)) / f.temperature); };
  const auto sum = [&] {
    double total = 0;
    for (int64_t v : left) total += share(v);
    return total;
  };
  if (f.top_k && f.top_k < int64_t(left.size())) left.resize(f.top_k);
  if (f.top_p < 1) {
    const double bound = f.top_p * sum();
    double passed = 0;
    size_t kept = 0;
    while (kept < left.size() && (kept == 0 || passed < bound)) passed += share(left[kept++]);
    left.resize(kept);
  }
  if (f.min_p > 0) std::erase_if(left, [&](int64_t v) { return share(v) < f.min_p; });
  const double total = sum();
  double passed = 0;
  for (int64_t v : left)
    if ((passed += share(v)) > point * total) return {v, std::log(share(v) / total)};
  return {left.back(), std::log(share(left.back()) / total)};
}

static void check(Draw& draw, int64_t S, int64_t V, bool masked, const Filters& f) {
  const int64_t words = (V + 31) / 32;
  auto x = draw.normal<float>(S, V, V + 3, 3);
  std::vector<double> temperature(S, f.temperature), top_p(S, f.top_p), min_p(S, f.min_p), point;
  std::vector<int64_t> top_k(S, f.top_k), ids(S, -7);
  for (int64_t s = 0; s < S; s++) point.push_back(double(draw.below(1 << 20)) / (1 << 20));
  std::vector<uint32_t> allowed(S * words, 0xffffffff);
  for (uint32_t& word : allowed)
    if (masked) word = uint32_t(draw.below(int64_t(1) << 32)) | 1;
  Table<float> logp(1, S), among(1, S);
  const auto run = [&] {
    draw_tokens(x.address(), x.stride, Address(temperature.data()), Address(top_k.data()), Address(top_p.data()),
                Address(min_p.data()), Address(point.data()), masked ? Address(allowed.data()) : 0,
                Address(ids.data()), logp.address(), among.address(), S, V);
  };
  run();
  const std::string name = named("", S, V, int(masked), f.top_k) + ' ' + std::to_string(f.temperature) + ' ' +
                           std::to_string(f.top_p) + ' ' + std::to_string(f.min_p);
  {
    Compare tokens("draw" + name, 0), logps("draw logp" + name, 1e-6), amongs("draw sampler_logp" + name, 1e-6);
    for (int64_t s = 0; s < S; s++) {
      const auto [id, own] = sorted(x, s, allowed, f, point[s]);
      double total = 0;
      for (int64_t v = 0; v < V; v++) total += std::exp(x(s, v));
      tokens(double(ids[s]), double(id));
      logps(logp(0, s), x(s, id) - std::log(total));
      amongs(among(0, s), own);
    }
  }
  x.at(0, V - 1) = NAN;
  run();
  Compare none("draw of a broken row" + name, 0);
  none(double(ids[0]), -1), none(std::isnan(logp(0, 0)), 1), none(std::isnan(among(0, 0)), 1);
}

void check_draw(Draw& draw) {
  for (auto [S, V] : {std::pair{1, 1}, {3, 2}, {2, 47}, {5, 1024}, {3, 3001}})
    for (bool masked : {false, true})
      for (const Filters& f : {Filters{0, 1, 0, 0}, {1, 1, 0, 0}, {0.7, 1, 0, 5}, {0.7, 0.9, 0, 0}, {1.5, 1, 0.02, 0},
                               {1, 0.5, 0.01, 40}, {3, 0.99, 0, 5000}})
        check(draw, S, V, masked, f);
}

}  // namespace FATHOM_TIER
