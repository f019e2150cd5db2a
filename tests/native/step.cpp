// What a decode step needs between the operations, beside plain loops.
#include "step/step.h"

#include <numeric>

#include "driver.h"

namespace FATHOM_TIER {

template <class T>
static void check_add(Draw& draw, int64_t n) {
  auto x = draw.normal<T>(1, n), y = draw.normal<T>(1, n);
  Table<T> out(1, n);
  add(x.address(), y.address(), out.address(), n, code<T>);
  compare(named("add", n), out, allowed<T>, [&](int64_t, int64_t i) { return x(0, i) + y(0, i); });
}

template <class I>
static void check_gather(Draw& draw, int64_t count, int64_t columns) {
  constexpr int64_t rows = 7;
  auto table = draw.normal<float>(rows, columns, columns + 2);
  std::vector<I> index;
  for (int64_t i = 0; i < count; i++) index.push_back(I(draw.below(rows)));
  Table<float> out(count, columns);
  gather_rows(table.address(), table.stride * 4, rows, Address(index.data()), sizeof(I), out.address(), count,
              columns * 4);
  compare(named("gather_rows", count, columns, sizeof(I)), out, 0,
          [&](int64_t r, int64_t c) { return table(index[r], c); });
  index.assign(count, I(rows));
  gather_rows(table.address(), table.stride * 4, rows, Address(index.data()), sizeof(I), out.address(), count,
              columns * 4);
  Compare poison(named("gather_rows of no row", count, columns), 0);
  for (float x : out.held) poison(std::isnan(x), 1);
}

// [a, b, c] whose last axes change places: cell (i, j, k) goes to (i, k, j), of other cells or of the same.
template <class T, class U>
static void check_cells(Draw& draw, int64_t a, int64_t b, int64_t c) {
  auto from = draw.normal<T>(1, a * b * c);
  Table<U> to(1, a * b * c);
  const auto place = [&](int64_t i) { return i / (b * c) * b * c + i % (b * c) % b * c + i % (b * c) / b; };
  for (bool turned : {false, true}) {
    const int64_t to_b = turned ? 1 : c, to_c = turned ? b : 1;
    if constexpr (std::is_same_v<T, U>)
      copy_cells(from.address(), to.address(), a, b, c, b * c, c, 1, b * c, to_b, to_c, sizeof(T));
    else
      convert_cells(from.address(), to.address(), a, b, c, b * c, c, 1, b * c, to_b, to_c, code<T>);
    compare(named("cells", a, b, c, sizeof(T), sizeof(U), int(turned)), to, std::is_same_v<T, U> ? 0 : 5e-3,
            [&](int64_t, int64_t i) { return from(0, turned ? place(i) : i); });
  }
}

template <class I>
static void check_count() {
  std::vector<I> numbers(5);
  std::iota(numbers.begin(), numbers.end(), I(3));
  count_up(Address(numbers.data()), 5, 2, sizeof(I));
  Compare each(named("count_up", sizeof(I)), 0);
  for (int i = 0; i < 5; i++) each(double(numbers[i]), i + 5);
}

void check_step(Draw& draw) {
  for (int64_t n : {1, 15, 64, 1000, 100003}) check_add<float>(draw, n), check_add<bf16>(draw, n);
  for (auto [count, columns] : {std::pair{1, 1}, {5, 33}, {40, 2000}}) {
    check_gather<int32_t>(draw, count, columns);
    check_gather<int64_t>(draw, count, columns);
  }
  for (auto [a, b, c] : {std::tuple{1, 1, 1}, {3, 5, 33}, {2, 64, 200}}) {
    check_cells<float, float>(draw, a, b, c);
    check_cells<bf16, bf16>(draw, a, b, c);
    check_cells<float, bf16>(draw, a, b, c);
    check_cells<bf16, float>(draw, a, b, c);
  }
  check_count<int32_t>();
  check_count<int64_t>();
}

}  // namespace FATHOM_TIER
