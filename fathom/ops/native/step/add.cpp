// Sums: the residual stream, and counters that move with every step.
#include "step/step.h"

namespace FATHOM_TIER {

template <class T>
static void add_range(const T* x, const T* y, T* out, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, load(x + i) + load(y + i));
  for (; i < n; i++) out[i] = narrow<T>(widen(x[i]) + widen(y[i]));
}

// out = x + y, each [n]; out may be x or y
void add(Address x, Address y, Address out, int64_t n, int type) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    // shares of whole cache lines
    constexpr int64_t LINE = 64;
    share((n + LINE - 1) / LINE, 5.0, [&](int64_t begin, int64_t end) {
      int64_t first = begin * LINE, last = std::min(n, end * LINE);
      add_range(at<T>(x) + first, at<T>(y) + first, at<T>(out) + first, last - first);
    });
  });
}

// x [n] of whole numbers of 4 or 8 bytes, each raised by `by`
void count_up(Address x, int64_t n, int64_t by, int64_t bytes) {
  for (int64_t i = 0; i < n; i++) {
    if (bytes == 4)
      at<int32_t>(x)[i] += int32_t(by);
    else
      at<int64_t>(x)[i] += by;
  }
}

}  // namespace FATHOM_TIER
