// Operands of four-bit training beside plain loops over one number at a time: the same bits are asked for.
#include "nvfp4/nvfp4.h"

#include <algorithm>
#include <cfloat>

#include "driver.h"

namespace FATHOM_TIER {

constexpr uint64_t SEED = 0x123456789abcdef1;
constexpr uint32_t STEP = 7, PLACE = 38;
constexpr float VALUES[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

static uint32_t word(int64_t r, int64_t c, bool column) {
  uint32_t a = uint32_t(c), b = uint32_t(r / 4), s = STEP, d = PLACE | uint32_t(column);
  uint32_t left = uint32_t(SEED), right = uint32_t(SEED >> 32);
  for (int round = 0; round < 7; round++) {
    const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(s) * 0xCD9E8D57u;
    const uint32_t words[4] = {uint32_t(q >> 32) ^ b ^ left, uint32_t(q), uint32_t(p >> 32) ^ d ^ right, uint32_t(p)};
    a = words[0], b = words[1], s = words[2], d = words[3];
    left += 0x9E3779B9u, right += 0xBB67AE85u;
  }
  const uint32_t found[4] = {a, b, s, d};
  return found[r % 4];
}

// The nearest of a table's neighbours, the even one of two; or by lot.
static float e2m1(float size, const uint32_t* lot) {
  int below = 7;
  while (VALUES[below] > size) below--;
  if (below == 7) return 6;
  const double share = (double(size) - VALUES[below]) / (double(VALUES[below + 1]) - VALUES[below]);
  const bool up = lot ? double(*lot >> 8) < share * 16777216 : share > 0.5 || (share == 0.5 && below % 2);
  return VALUES[below + up];
}

static float e4m3(float size) {
  if (size == 0) return 0;
  const double step = std::exp2(std::max(std::floor(std::log2(double(size))), -6.0) - 3);
  return float(std::nearbyint(double(size) / step) * step);
}

// One block of values, the largest magnitude of the whole being `amax`.
static void encode(std::vector<float>& block, float peak, float amax, const std::vector<uint32_t>& lots) {
  const float factor = amax == 0 ? 1.0f : std::min(2688.0f / amax, FLT_MAX), sixth = factor * float(1.0 / 6.0);
  const float scale = e4m3(std::min(peak * sixth, 448.0f));
  const float own = std::min(1.0f / (scale * (1.0f / factor)), FLT_MAX);
  for (size_t i = 0; i < block.size(); i++) {
    const float y = block[i] * own;
    block[i] = std::copysign(e2m1(std::min(std::fabs(y), 6.0f), lots.empty() ? nullptr : &lots[i]) * scale, y);
  }
}

static float peak_of(const std::vector<float>& block) {
  float most = 0;
  for (float x : block) most = std::max(most, std::fabs(x));
  return most;
}

// x [T, C] by blocks of 16 along rows or along columns: [16 ceil(T / 16), C].
template <class X>
static std::vector<float> wanted(const Table<X>& x, bool columns, int wishes, float& amax) {
  const int64_t T = x.rows, C = x.columns, R = (T + 15) / 16 * 16, wide = (C + 15) / 16 * 16;
  std::vector<float> y(R * wide, 0.0f);
  const auto at = [&](int64_t b, int64_t other, int64_t i) -> float& {
    return columns ? y[(b * 16 + i) * wide + other] : y[other * wide + b * 16 + i];
  };
  for (int64_t r = 0; r < T; r++)
    for (int64_t c = 0; c < C; c++) y[r * wide + c] = float(x(r, c));
  const int64_t blocks = (columns ? R : wide) / 16, others = columns ? wide : R;
  constexpr int SIGNS[] = {1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};
  std::vector<float> peaks(blocks * others), block(16);
  amax = 0;
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t o = 0; o < others; o++) {
      if (wishes & TRANSFORM) {
        for (int i = 0; i < 16; i++) at(b, o, i) *= SIGNS[i];
        for (int half = 1; half < 16; half *= 2)
          for (int i = 0; i < 16; i++) {
            if (i & half) continue;
            const float p = at(b, o, i), q = at(b, o, i + half);
            at(b, o, i) = p + q, at(b, o, i + half) = p - q;
          }
        for (int i = 0; i < 16; i++) at(b, o, i) = widen(narrow<X>(at(b, o, i) * 0.25f));
      }
      for (int i = 0; i < 16; i++) block[i] = at(b, o, i);
      amax = std::max(amax, peaks[b * others + o] = peak_of(block));
    }
  if (wishes & TILES)
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t o = 0; o < others; o += 16) {
        const auto first = peaks.begin() + b * others + o;
        std::fill(first, first + 16, *std::max_element(first, first + 16));
      }
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t o = 0; o < others; o++) {
      std::vector<uint32_t> lots;
      for (int i = 0; i < 16; i++) {
        block[i] = at(b, o, i);
        if (wishes & STOCHASTIC) lots.push_back(columns ? word(b * 16 + i, o, true) : word(o, b * 16 + i, false));
      }
      encode(block, peaks[b * others + o], amax, lots);
      for (int i = 0; i < 16; i++) at(b, o, i) = block[i];
    }
  std::vector<float> cut(R * C);
  for (int64_t r = 0; r < R; r++) std::copy_n(y.begin() + r * wide, C, cut.begin() + r * C);
  return cut;
}

template <class X, class Y>
static void check(Draw& draw, int64_t T, int64_t C, int rows_wishes, int columns_wishes) {
  auto x = draw.normal<X>(T, C, C + 3);
  const int64_t R = (T + 15) / 16 * 16;
  Table<Y> rows(T, C), columns(R, C);
  std::vector<float> amax(2, NAN);
  nvfp4_operands(x.address(), x.stride, code<X>, 0, T, R, C, 0, 1, rows.address(), code<Y>, rows_wishes,
                 columns.address(), code<Y>, columns_wishes, SEED, STEP, PLACE, Address(amax.data()));
  float by_rows, by_columns;
  const auto own_rows = wanted(x, false, rows_wishes, by_rows), own_columns = wanted(x, true, columns_wishes, by_columns);
  const std::string sizes = named("", T, C, rows_wishes, columns_wishes);
  compare("nvfp4 rows" + sizes, rows, 0, [&](int64_t r, int64_t c) { return own_rows[r * C + c]; });
  compare("nvfp4 columns" + sizes, columns, 0, [&](int64_t r, int64_t c) { return own_columns[r * C + c]; });
  Compare largest("nvfp4 largest" + sizes, 0);
  largest(amax[0], by_rows), largest(amax[1], by_columns);
}

// Rows that are taken by place, in two groups, are those of the two matrices alone.
static void check_groups(Draw& draw) {
  constexpr int64_t T = 20, C = 21, R = 48;
  auto x = draw.normal<float>(T, C);
  std::vector<int64_t> source(R, -1);
  for (int64_t r = 0; r < 40; r++) source[r] = r < 16 ? r : draw.below(T);
  std::vector<int32_t> group{1, 0, 0};
  Table<float> rows(R, C), columns(R, C), first(16, C), first_columns(16, C);
  std::vector<float> amax(4), alone(2);
  nvfp4_operands(x.address(), C, 0, Address(source.data()), T, R, C, Address(group.data()), 2, rows.address(), 0, 0,
                 columns.address(), 0, TRANSFORM, 0, 0, 0, Address(amax.data()));
  nvfp4_operands(x.address(), C, 0, 0, 16, 16, C, 0, 1, first.address(), 0, 0, first_columns.address(), 0, TRANSFORM, 0,
                 0, 0, Address(alone.data()));
  Compare same("nvfp4 groups", 0);
  for (int64_t r = 0; r < 16; r++)
    for (int64_t c = 0; c < C; c++) same(rows(r, c), first(r, c)), same(columns(r, c), first_columns(r, c));
  same(amax[1], alone[0]), same(amax[3], alone[1]);
}

template <class Y>
static void check_mx(Draw& draw, int64_t T, int64_t C) {
  auto x = draw.normal<float>(T, C);
  const int64_t R = (T + 31) / 32 * 32;
  Table<Y> rows(T, C), columns(R, C);
  mxfp8_operands(x.address(), C, 0, 0, T, R, C, rows.address(), code<Y>, columns.address(), code<Y>);
  const auto one = [&](int64_t r, int64_t c, bool down) {
    float peak = 0;
    const int64_t first = (down ? r : c) / 32 * 32;
    for (int64_t i = first; i < std::min(first + 32, down ? T : C); i++)
      peak = std::max(peak, float(std::fabs(down ? x(i, c) : x(r, i))));
    const float scale = float(std::exp2(std::ceil(std::log2(double(peak * float(1.0 / 448.0))))));
    if (r >= T || peak == 0) return 0.0f;
    const float y = float(x(r, c)) / scale;
    return std::copysign(e4m3(std::min(std::fabs(y), 448.0f)) * scale, y);
  };
  compare(named("mxfp8 rows", T, C), rows, 0, [&](int64_t r, int64_t c) { return one(r, c, false); });
  compare(named("mxfp8 columns", T, C), columns, 0, [&](int64_t r, int64_t c) { return one(r, c, true); });
}

void check_nvfp4(Draw& draw) {
  for (auto [T, C] : {std::pair{1, 1}, {5, 16}, {33, 40}, {64, 100}})
    for (int lot : {0, 1})
      for (int other : {0, 1}) {
        check<float, bf16>(draw, T, C, lot * STOCHASTIC | other * TILES, lot * STOCHASTIC | other * TRANSFORM);
        check<bf16, float>(draw, T, C, lot * STOCHASTIC | other * TILES, lot * STOCHASTIC | other * TRANSFORM);
      }
  check_groups(draw);
  for (auto [T, C] : {std::pair{1, 1}, {33, 40}, {64, 100}}) check_mx<float>(draw, T, C), check_mx<bf16>(draw, T, C);
  for (auto [R, C] : {std::pair{1, 1}, {37, 33}}) {
    auto sums = draw.normal<bf16>(R, C);
    std::vector<float> alpha{0.5f, -3.0f};
    std::vector<int32_t> group{1, 0, 1};
    Table<float> y(R, C);
    nvfp4_scaled(sums.address(), code<bf16>, Address(alpha.data()), Address(group.data()), 16, y.address(), 0, R, C);
    compare(named("nvfp4 scaled", R, C), y, 0,
            [&](int64_t r, int64_t c) { return float(sums(r, c)) * alpha[size_t(group[size_t(r / 16)])]; });
  }
}

}  // namespace FATHOM_TIER
