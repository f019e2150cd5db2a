// What every room's checks share: numbers drawn from a seed, memory that is poison until it is written,
// and the comparison with a plain computation in double.
//
// Promise: buffers end with their last value, so that a sanitizer sees one step too far.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// What has been compared so far, and what was wrong.
struct Tally {
  int compared = 0, wrong = 0;
};

inline Tally tally;

template <class T>
constexpr int code = std::is_same_v<T, float> ? 0 : 1;

// How far a result of this type may be off, relative to the whole: rounding of the last store rules in bf16.
template <class T>
constexpr double allowed = std::is_same_v<T, float> ? 2e-5 : 5e-3;

template <class T>
T value_of(double x) {
  if constexpr (std::is_integral_v<T>)
    return T(x);
  else
    return narrow<T>(float(x));
}

// Rows of values, `stride` apart; what lies between rows is NaN.
template <class T>
struct Table {
  int64_t rows, columns, stride;
  std::vector<T> held;

  Table(int64_t rows, int64_t columns, int64_t stride = 0)
      : rows(rows), columns(columns), stride(stride ? stride : columns),
        held((rows - 1) * this->stride + columns, value_of<T>(NAN)) {}

  Address address() { return Address(held.data()); }
  T& at(int64_t r, int64_t c) { return held[r * stride + c]; }
  double operator()(int64_t r, int64_t c) const { return widen(held[r * stride + c]); }
};

// Numbers from a seed.
class Draw {
 public:
  template <class T>
  Table<T> normal(int64_t rows, int64_t columns, int64_t stride = 0, double deviation = 1) {
    Table<T> drawn(rows, columns, stride);
    std::normal_distribution<double> numbers(0, deviation);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c++) drawn.at(r, c) = value_of<T>(numbers(engine_));
    return drawn;
  }

  template <class T>
  Table<T> between(double least, double most, int64_t rows, int64_t columns) {
    Table<T> drawn(rows, columns);
    std::uniform_real_distribution<double> numbers(least, most);
    for (T& x : drawn.held) x = value_of<T>(numbers(engine_));
    return drawn;
  }

  int64_t below(int64_t n) { return int64_t(engine_() % uint64_t(n)); }

 private:
  std::mt19937_64 engine_{7};
};

// Collects pairs of values; at its end says whether they are the same up to `allowed` of their size.
class Compare {
 public:
  Compare(std::string what, double allowed) : what_(std::move(what)), allowed_(allowed) {}

  void operator()(double got, double want) {
    finite_ = finite_ && std::isfinite(got);
    error_ += (got - want) * (got - want);
    size_ += want * want;
  }

  ~Compare() {
    const double off = std::sqrt(error_) / std::max(std::sqrt(size_), 0.1);
    tally.compared++;
    if (finite_ && off <= allowed_) return;
    tally.wrong++;
    std::printf("WRONG %s: off by %.2e, %.1e is allowed%s\n", what_.c_str(), off, allowed_,
                finite_ ? "" : ", not finite");
  }

 private:
  std::string what_;
  double allowed_, error_ = 0, size_ = 0;
  bool finite_ = true;
};

// f(T{}) for fp32 and bf16.
template <class F>
void for_types(const F& f) {
  f(float{});
  f(bf16{});
}

template <class... A>
std::string named(const char* what, A... sizes) {
  std::string name = what;
  ((name += ' ', name += std::to_string(sizes)), ...);
  return name;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

// Compare every value of `got` with want(row, column).
template <class T, class F>
void compare(std::string what, const Table<T>& got, double allowed, const F& want) {
  Compare each(std::move(what), allowed);
  for (int64_t r = 0; r < got.rows; r++)
    for (int64_t c = 0; c < got.columns; c++) each(got(r, c), want(r, c));
}

// The rooms, a file each.
void check_norm(Draw& draw);
void check_conv(Draw& draw);
void check_route(Draw& draw);
void check_linear(Draw& draw);
void check_experts(Draw& draw);
void check_ssd(Draw& draw);
void check_attend(Draw& draw);
void check_step(Draw& draw);
void check_draw(Draw& draw);
void check_nvfp4(Draw& draw);

}  // namespace FATHOM_TIER
