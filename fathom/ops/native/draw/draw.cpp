// One token a row of logits: the best, or the inverse of the cumulative distribution at a given point.
//
// Promise: log-probabilities come from compensated fp32 sums, shares are fp64 throughout. A row is one thread's
// work. Nothing is sorted but a few candidates around a filter's bound or the point; groups of tokens whose best
// is too small are not looked into.
#include "draw/draw.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/parallel.h"
#include "core/scratch.h"
#include "draw/row.h"

namespace FATHOM_TIER {

namespace {

constexpr double NOTHING = -std::numeric_limits<double>::infinity();

// How one row is drawn from.
struct Sampling {
  double temperature, top_p, min_p, point;
  int64_t top_k;

  bool filters() const { return top_k > 0 || top_p < 1 || min_p > 0; }
  // 1 / temperature; finite, so that 0 times it is 0
  double inverse() const { return std::min(1 / temperature, 1e300); }
};

// A token and its log-probability among what was drawn from.
struct Drawn {
  int64_t id;
  double logp;
};

// Among all that are seen, in the order of ids.
template <bool MASKED>
Drawn in_order(const Row<MASKED>& row, const Sampling& how, float best) {
  struct Sums;
  const int64_t blocks = (row.V + BLOCK - 1) / BLOCK;
  double* sums = Scratch<Sums>::template of<double>(blocks);
  double total = 0;
  for (int64_t i = 0; i < blocks; i++) total += sums[i] = row.block(i * BLOCK, best, how.inverse(), nullptr);
  // the last block with any share, if rounding makes the point the whole sum
  int64_t chosen = 0;
  double before = 0, passed = 0;
  for (int64_t i = 0; i < blocks; i++) {
    if (sums[i] > 0) chosen = i, before = passed;
    passed += sums[i];
    if (passed > how.point * total) break;
  }
  double shares[BLOCK];
  row.block(chosen * BLOCK, best, how.inverse(), shares);
  const int64_t count = std::min(BLOCK, row.V - chosen * BLOCK);
  int64_t place = 0;
  for (int64_t i = 0; i < count; i++) {
    if (shares[i] > 0) place = i;
    before += shares[i];
    if (before > how.point * total) break;
  }
  return {chosen * BLOCK + place, std::log(shares[place]) - std::log(total)};
}

struct Candidate {
  float logit;
  int32_t id;
  double share;
};

inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

inline double sum_of(const Candidate* from, const Candidate* to) {
  return std::accumulate(from, to, 0.0, [](double sum, const Candidate& c) { return sum + c.share; });
}

// Every token with a logit of `least` or more and a share, in no order; returns how many there are.
template <bool MASKED>
int64_t gather(const Row<MASKED>& row, const float* tops, float best, double temperature, double least,
               Candidate* found) {
  int64_t count = 0;
  for (int64_t group = 0; group < row.groups(); group++) {
    if (tops[group] < least || tops[group] == -INFINITY) continue;
    const int64_t first = group / W * CHUNK + group % W;
    for (int64_t v = first; v < std::min(row.V, first + CHUNK); v += W) {
      const float x = row.x[v];
      if (x < least || !row.allows(v)) continue;
      const double share = std::exp((double(x) - double(best)) / temperature);
      if (share > 0) found[count++] = {x, int32_t(v), share};
    }
  }
  return count;
}

// The candidates that top_p may keep, of those with a logit of `least` or more: as far down as its share of
// `total` reaches.
template <bool MASKED>
int64_t gather_share(const Row<MASKED>& row, const Sampling& how, const float* tops, float best, double least,
                     double total, Candidate* found) {
  for (double reach = 4;; reach *= 1.25) {
    const double cut = std::max(least, best - reach * how.temperature);
    const int64_t count = gather(row, tops, best, how.temperature, cut, found);
    // what lies 800 below has no share in fp64
    if (cut <= least || reach > 800 || sum_of(found, found + count) > how.top_p * total * (1 + 1e-12)) return count;
  }
}

// A logit that at least k tokens reach: so many groups have one.
inline double reached_by(int64_t k, const float* tops, int64_t groups) {
  struct Order;
  if (k >= groups) return NOTHING;
  float* order = Scratch<Order>::of<float>(groups);
  std::copy(tops, tops + groups, order);
  std::nth_element(order, order + k - 1, order + groups, [](float a, float b) { return a > b; });
  return order[k - 1];
}

// The place, the best candidate first, at which the sum of shares satisfies `enough`, or the last one. The
// candidates before it are the better ones; only a few around it are sorted.
template <class F>
int64_t place_of(Candidate* found, int64_t count, const F& enough) {
  constexpr int64_t FEW = 32;
  int64_t first = 0, last = count;
  double sum = 0;
  while (last - first > FEW) {
    const int64_t middle = first + (last - first) / 2;
    std::nth_element(found + first, found + middle, found + last, better);
    const double more = sum + sum_of(found + first, found + middle);
    if (enough(more))
      last = middle;
    else
      first = middle, sum = more;
  }
  std::sort(found + first, found + last, better);
  for (; first < last - 1; first++) {
    sum += found[first].share;
    if (enough(sum)) break;
  }
  return first;
}

// Among what the filters leave, the best first.
template <bool MASKED>
Drawn best_first(const Row<MASKED>& row, const Sampling& how, const float* tops, float best) {
  struct Found;
  Candidate* found = Scratch<Found>::template of<Candidate>(row.V);
  double least = how.top_k > 0 ? reached_by(how.top_k, tops, row.groups()) : NOTHING;
  if (how.min_p > 0 && !(how.top_k > 0 && how.top_p < 1)) {
    // a little lower, for what rounding does; which of them pass is decided by their shares
    const double below = -how.temperature * std::log(how.min_p);
    least = std::max(least, best - below - 1e-9 * (1 + below + std::fabs(best)));
  }
  int64_t count;
  double total = 0;
  if (how.top_p < 1 && how.top_k <= 0) {
    for (int64_t v = 0; v < row.V; v += BLOCK) total += row.block(v, best, how.inverse(), nullptr);
    count = gather_share(row, how, tops, best, least, total, found);
  } else {
    count = gather(row, tops, best, how.temperature, least, found);
  }
  if (how.top_k > 0 && how.top_k < count) {
    std::nth_element(found, found + how.top_k, found + count, better);
    count = how.top_k;
  }
  if (how.top_p < 1) {
    if (how.top_k > 0) total = sum_of(found, found + count);
    count = 1 + place_of(found, count, [&](double sum) { return sum >= how.top_p * total; });
  }
  if (how.min_p > 0)
    count = std::partition(found, found + count, [&](const Candidate& c) { return c.share >= how.min_p; }) - found;
  const double left = sum_of(found, found + count);
  const Candidate& own = found[place_of(found, count, [&](double sum) { return sum > how.point * left; })];
  return {own.id, std::log(own.share / left)};
}

// One row; nothing is written where there is no token to draw.
template <bool MASKED>
void draw_row(const Row<MASKED>& row, const Sampling& how, int64_t& id, float& logp, float& sampler_logp) {
  struct Tops;
  float* tops = Scratch<Tops>::template of<float>(row.groups());
  const Row<false> whole{row.x, nullptr, row.V};
  const float top = whole.highest(tops), best = MASKED ? row.highest(tops) : top;
  if (!std::isfinite(top)) return;
  const double weight = whole.weight(top);
  if (!std::isfinite(weight) || !std::isfinite(best)) return;
  Drawn drawn;
  if (!(how.temperature > 0))
    drawn = {row.first_of(best, tops), 0.0};
  else if (how.filters())
    drawn = best_first(row, how, tops, best);
  else
    drawn = in_order(row, how, best);
  id = drawn.id;
  logp = float(double(row.x[id]) - double(top) - std::log(weight));
  sampler_logp = float(drawn.logp);
}

}  // namespace

void draw_tokens(Address logits, int64_t stride, Address temperature, Address top_k, Address top_p,
                 Address min_p, Address point, Address allowed, Address ids, Address logp,
                 Address sampler_logp, int64_t S, int64_t V) {
  share(S, 0.5 * double(V), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; s++) {
      const Sampling how{at<double>(temperature)[s], at<double>(top_p)[s], at<double>(min_p)[s],
                         at<double>(point)[s], at<int64_t>(top_k)[s]};
      const float* x = at<float>(logits) + s * stride;
      int64_t& id = at<int64_t>(ids)[s] = -1;
      float& own = at<float>(logp)[s] = NAN;
      float& among = at<float>(sampler_logp)[s] = NAN;
      if (allowed)
        draw_row(Row<true>{x, at<uint32_t>(allowed) + s * ((V + 31) / 32), V}, how, id, own, among);
      else
        draw_row(Row<false>{x, nullptr, V}, how, id, own, among);
    }
  });
}

}  // namespace FATHOM_TIER
