// relu(x)^2 and its gradient 2 relu(x) dy, over n values.
#include <algorithm>

#include "core/parallel.h"
#include "route/route.h"

namespace FATHOM_TIER {

// NaN stays NaN.
static vf relu(vf x) { return x <= vf{} ? vf{} : x; }

void squared_relu(Address x, Address y, int64_t n, int type) {
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    share((n + W - 1) / W, 0.1 * W, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * W; i < std::min(n, end * W); i += W) {
        vf r = relu(load_upto(at<X>(x) + i, n - i));
        store_upto(at<X>(y) + i, r * r, n - i);
      }
    });
  });
}

void squared_relu_backward(Address dy, Address x, Address dx, int64_t n, int type) {
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    share((n + W - 1) / W, 0.1 * W, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * W; i < std::min(n, end * W); i += W) {
        vf r = relu(load_upto(at<X>(x) + i, n - i));
        store_upto(at<X>(dx) + i, (r + r) * load_upto(at<X>(dy) + i, n - i), n - i);
      }
    });
  });
}

}  // namespace FATHOM_TIER
