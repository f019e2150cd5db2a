// RMSNorm forward: y = x / sqrt(mean(x^2) + eps) * weight, row by row, fp32 inside.
#include "norm/norm.h"

namespace FATHOM_TIER {

template <class T, class U>
static void rms_row(const T* x, const U* weight, T* y, int64_t D, float eps) {
  vf squares{};
  for (int64_t d = 0; d < D; d += W) {
    vf v = load_upto(x + d, D - d);
    squares = fma(v, v, squares);
  }
  vf scale = splat(1.0f / std::sqrt(sum(squares) / float(D) + eps));
  for (int64_t d = 0; d < D; d += W) {
    vf v = load_upto(x + d, D - d) * scale * load_upto(weight + d, D - d);
    store_upto(y + d, v, D - d);
  }
}

// x [T, D] with rows `stride` apart, weight [D], y [T, D]
void rms_norm(Address x, int64_t stride, Address weight, Address y, int64_t T, int64_t D, double eps,
              int type, int weight_type) {
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    with_type(weight_type, [&](auto* u) {
      using U = std::remove_pointer_t<decltype(u)>;
      share(T, 0.2 * double(D), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          rms_row(at<X>(x) + i * stride, at<U>(weight), at<X>(y) + i * D, D, float(eps));
      });
    });
  });
}

}  // namespace FATHOM_TIER
