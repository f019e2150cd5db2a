// Step sizes: softplus of what was projected plus a bias a head, and the way back.
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

namespace {

// Tokens whose share of the bias's gradient is one sum: a number of its own, whatever threads there are.
constexpr int64_t TOKENS = 64;

template <class F>
void with_types(int raw_type, int bias_type, const F& f) {
  with_type(raw_type, [&](auto* t) { with_type(bias_type, [&](auto* u) { f(t, u); }); });
}

}  // namespace

void ssd_step_sizes(Address raw, int64_t raw_step, int raw_type, Address bias, int bias_type,
                    Address steps, int64_t T, int64_t H) {
  with_types(raw_type, bias_type, [&](auto* t, auto* u) {
    using R = std::remove_pointer_t<decltype(t)>;
    using B = std::remove_pointer_t<decltype(u)>;
    share(T, 2.0 * double(H), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t h = 0; h < H; h += W) {
          vf sum = load_upto(at<R>(raw) + i * raw_step + h, H - h) + load_upto(at<B>(bias) + h, H - h);
          store_upto(at<float>(steps) + i * H + h, softplus(sum), H - h);
        }
    });
  });
}

void ssd_step_sizes_backward(Address raw, int64_t raw_step, int raw_type, Address bias, int bias_type,
                             Address dsteps, Address draw, Address dbias, int64_t T, int64_t H) {
  int64_t blocks = (T + TOKENS - 1) / TOKENS;
  std::vector<float> shares(size_t(blocks * H));
  with_types(raw_type, bias_type, [&](auto* t, auto* u) {
    using R = std::remove_pointer_t<decltype(t)>;
    using B = std::remove_pointer_t<decltype(u)>;
    each(blocks, 2.0 * double(TOKENS * H), [&](int64_t block) {
      int64_t end = std::min(T, (block + 1) * TOKENS);
      for (int64_t h = 0; h < H; h += W) {
        vf own = load_upto(at<B>(bias) + h, H - h), total{};
        for (int64_t i = block * TOKENS; i < end; i++) {
          vf sum = load_upto(at<R>(raw) + i * raw_step + h, H - h) + own;
          vf d = load_upto(at<float>(dsteps) + i * H + h, H - h) * sigmoid(sum);
          store_upto(at<R>(draw) + i * H + h, d, H - h);
          total += d;
        }
        store_upto(shares.data() + block * H + h, total, H - h);
      }
    });
  });
  for (int64_t h = 0; h < H; h++) {
    double total = 0;
    for (int64_t block = 0; block < blocks; block++) total += shares[size_t(block * H + h)];
    at<float>(dbias)[h] = float(total);
  }
}

}  // namespace FATHOM_TIER
