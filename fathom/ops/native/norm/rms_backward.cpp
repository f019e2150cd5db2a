// RMSNorm backward. With r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy weight:
//   dx = r (g - n mean(g n)), dweight = sum over tokens of dy n.
//
// Promise: two passes over a row, r computed again; dweight is summed in ranges of NORM_RANGE tokens,
// then range by range, whatever the number of threads.
#include "core/parallel.h"
#include "norm/norm.h"

namespace FATHOM_TIER {

void add_rows(const float* rows, float* sum, int64_t count, int64_t D) {
  share((D + W - 1) / W, 0.5 * double(count), [&](int64_t begin, int64_t end) {
    for (int64_t d = begin * W; d < end * W && d < D; d += W) {
      vf total{};
      for (int64_t i = 0; i < count; i++) total = total + load_upto(rows + i * D + d, D - d);
      store_upto(sum + d, total, D - d);
    }
  });
}

// One token; adds dy n to dweight [D].
template <class T, class U>
static void rms_row(const T* dy, const T* x, const U* weight, T* dx, float* dweight, int64_t D,
                    float eps) {
  vf squares{}, products{};
  for (int64_t d = 0; d < D; d += W) {
    vf v = load_upto(x + d, D - d);
    vf g = load_upto(dy + d, D - d) * load_upto(weight + d, D - d);
    squares = fma(v, v, squares);
    products = fma(g, v, products);
  }
  const float r = 1.0f / std::sqrt(sum(squares) / float(D) + eps);
  const vf scale = splat(r), mean = splat(sum(products) * r / float(D));
  for (int64_t d = 0; d < D; d += W) {
    vf n = load_upto(x + d, D - d) * scale, dout = load_upto(dy + d, D - d);
    vf g = dout * load_upto(weight + d, D - d);
    store_upto(dx + d, (g - n * mean) * scale, D - d);
    store_upto(dweight + d, fma(dout, n, load_upto(dweight + d, D - d)), D - d);
  }
}

// dy [T, D], x [T, D] with rows `stride` apart, weight [D] -> dx [T, D], dweight [D] in fp32;
// partial [ceil(T / NORM_RANGE), D] fp32 is scratch
void rms_norm_backward(Address dy, Address x, int64_t stride, Address weight, Address dx,
                       Address partial, Address dweight, int64_t T, int64_t D, double eps, int type,
                       int weight_type) {
  const int64_t ranges = (T + NORM_RANGE - 1) / NORM_RANGE;
  with_type(type, [&](auto* t) {
    using X = std::remove_pointer_t<decltype(t)>;
    with_type(weight_type, [&](auto* u) {
      using U = std::remove_pointer_t<decltype(u)>;
      each(ranges, 0.4 * double(D * std::min(T, NORM_RANGE)), [&](int64_t range) {
        float* sums = at<float>(partial) + range * D;
        std::fill_n(sums, D, 0.0f);
        const int64_t end = std::min(T, (range + 1) * NORM_RANGE);
        for (int64_t i = range * NORM_RANGE; i < end; i++)
          rms_row(at<X>(dy) + i * D, at<X>(x) + i * stride, at<U>(weight), at<X>(dx) + i * D, sums, D,
                  float(eps));
      });
    });
  });
  add_rows(at<float>(partial), at<float>(dweight), ranges, D);
}

}  // namespace FATHOM_TIER
