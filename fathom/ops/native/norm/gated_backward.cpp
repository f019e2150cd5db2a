// The gated norm backward. With g = y silu(z), r = 1 / rms(g), n = g r and d = dout weight, in each group:
//   dg = r (d - n mean(d n)), dy = dg silu(z), dz = dg y silu'(z), dweight = sum over tokens of dout n.
//
// Promise: nothing is kept from the forward pass but its inputs; dweight is summed as RMSNorm's is.
#include "core/parallel.h"
#include "norm/norm.h"

namespace FATHOM_TIER {

template <class T, class Z>
struct Gated {
  const T *dout, *y;
  const Z* z;
  T* dy;
  Z* dz;
};

// One group of n channels of one token; adds to dweight [n]; `held` [n, rounded up to W] is scratch.
template <class T, class Z, class U>
static void group(const Gated<T, Z>& at, const U* weight, float* dweight, int64_t n, float eps,
                  float* held) {
  vf squares{}, products{};
  for (int64_t i = 0; i < n; i += W) {
    vf z = load_upto(at.z + i, n - i), open = sigmoid(z);
    store(held + i, open);
    vf g = load_upto(at.y + i, n - i) * (z * open);
    vf d = load_upto(at.dout + i, n - i) * load_upto(weight + i, n - i);
    squares = fma(g, g, squares);
    products = fma(d, g, products);
  }
  const float r = 1.0f / std::sqrt(sum(squares) / float(n) + eps);
  const vf scale = splat(r), mean = splat(sum(products) * r / float(n)), one = splat(1.0f);
  for (int64_t i = 0; i < n; i += W) {
    vf z = load_upto(at.z + i, n - i), open = load(held + i), y = load_upto(at.y + i, n - i);
    vf silu = z * open, normal = y * silu * scale, dout = load_upto(at.dout + i, n - i);
    vf dg = (dout * load_upto(weight + i, n - i) - normal * mean) * scale;
    store_upto(at.dy + i, dg * silu, n - i);
    store_upto(at.dz + i, dg * y * (open * fma(z, one - open, one)), n - i);
    store_upto(dweight + i, fma(dout, normal, load_upto(dweight + i, n - i)), n - i);
  }
}

// dout [T, D], y and z [T, D] with rows `y_stride` and `z_stride` apart, weight [D] -> dy and dz [T, D],
// dweight [D] in fp32; partial [ceil(T / NORM_RANGE), D] fp32 is scratch
void gated_norm_backward(Address dout, Address y, int64_t y_stride, Address z, int64_t z_stride,
                         Address weight, Address dy, Address dz, Address partial, Address dweight,
                         int64_t T, int64_t D, int64_t groups, double eps, int type, int gate_type,
                         int weight_type) {
  const int64_t n = D / groups, ranges = (T + NORM_RANGE - 1) / NORM_RANGE;
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    with_type(gate_type, [&](auto* g) {
      using Z = std::remove_pointer_t<decltype(g)>;
      with_type(weight_type, [&](auto* u) {
        using U = std::remove_pointer_t<decltype(u)>;
        each(ranges * groups, 0.6 * double(n * std::min(T, NORM_RANGE)), [&](int64_t task) {
          std::vector<float> held(n + W);
          const int64_t range = task / groups, first = task % groups * n;
          const int64_t end = std::min(T, (range + 1) * NORM_RANGE);
          float* sums = at<float>(partial) + range * D + first;
          std::fill_n(sums, n, 0.0f);
          for (int64_t i = range * NORM_RANGE; i < end; i++) {
            const Gated<X, Z> row{at<X>(dout) + i * D + first, at<X>(y) + i * y_stride + first,
                                  at<Z>(z) + i * z_stride + first, at<X>(dy) + i * D + first,
                                  at<Z>(dz) + i * D + first};
            group(row, at<U>(weight) + first, sums, n, float(eps), held.data());
          }
        });
      });
    });
  });
  add_rows(at<float>(partial), at<float>(dweight), ranges, D);
}

}  // namespace FATHOM_TIER
