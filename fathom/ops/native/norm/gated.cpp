// The gated norm forward: g = y silu(z), then g / sqrt(mean(g^2) + eps) * weight over each group of channels.
#include "core/parallel.h"
#include "norm/norm.h"

namespace FATHOM_TIER {

// One group of n channels of one token; `held` [n, rounded up to W] is scratch.
template <class T, class Z, class U>
static void group(const T* y, const Z* z, const U* weight, T* out, int64_t n, float eps, float* held) {
  vf squares{};
  for (int64_t i = 0; i < n; i += W) {
    vf v = load_upto(y + i, n - i) * silu(load_upto(z + i, n - i));
    store(held + i, v);
    squares = fma(v, v, squares);
  }
  vf scale = splat(1.0f / std::sqrt(sum(squares) / float(n) + eps));
  for (int64_t i = 0; i < n; i += W)
    store_upto(out + i, load(held + i) * scale * load_upto(weight + i, n - i), n - i);
}

// y and z [T, D] with rows `y_stride` and `z_stride` apart, weight [D] -> out [T, D] of y's type
void gated_norm(Address y, int64_t y_stride, Address z, int64_t z_stride, Address weight, Address out,
                int64_t T, int64_t D, int64_t groups, double eps, int type, int gate_type,
                int weight_type) {
  const int64_t n = D / groups;
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    with_type(gate_type, [&](auto* g) {
      using Z = std::remove_pointer_t<decltype(g)>;
      with_type(weight_type, [&](auto* u) {
        using U = std::remove_pointer_t<decltype(u)>;
        share(T * groups, 0.3 * double(n), [&](int64_t begin, int64_t end) {
          std::vector<float> held(n + W);
          for (int64_t i = begin; i < end; i++) {
            const int64_t token = i / groups, first = i % groups * n;
            group(at<X>(y) + token * y_stride + first, at<Z>(z) + token * z_stride + first,
                  at<U>(weight) + first, at<X>(out) + token * D + first, n, float(eps), held.data());
          }
        });
      });
    });
  });
}

}  // namespace FATHOM_TIER
