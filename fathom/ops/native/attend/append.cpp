// Keys and values of a call's tokens into their pages.
#include "attend/attend.h"
#include "attend/pages.h"

namespace FATHOM_TIER {

// Values of a row of x [d] to y, where value i of the row goes to `place(i)`.
template <class X, class Y, class F>
static inline void put(const X* x, Y* y, int64_t d, float scale, const F& place) {
  if (scale == 1.0f)
    for (int64_t i = 0; i < d; i++) y[place(i)] = narrow<Y>(widen(x[i]));
  else
    for (int64_t i = 0; i < d; i++) y[place(i)] = narrow<Y>(widen(x[i]) / scale);
}

template <class X, class Y>
static void append(const Pages& pages, const X* k, int64_t k_stride, const X* v, int64_t v_stride, int64_t T,
                   float k_scale, float v_scale) {
  constexpr int pair = sizeof(Y) == 4 ? 1 : 2;
  const int64_t h = pages.h, d = pages.d, D = pages.D, P = pages.P;
  share(T, 2.0 * double(h * d), [&](int64_t begin, int64_t end) {
    int64_t s = 0;
    for (int64_t t = begin; t < end; t++) {
      while (t >= pages.begin(s + 1)) s++;
      int64_t token = pages.past[s] + t - pages.begin(s), slot = token % P, page = pages.page(s, token);
      for (int64_t head = 0; head < h; head++) {
        put(k + t * k_stride + head * d, pages.key_block<Y>(page, head) + slot * pair, d, k_scale,
            [&](int64_t i) { return i / pair * pair * P + i % pair; });
        put(v + t * v_stride + head * d, pages.value_block<Y>(page, head) + slot / pair * pair * D + slot % pair, d,
            v_scale, [&](int64_t i) { return i * pair; });
      }
    }
  });
}

void attend_append(Address k, int64_t k_stride, int type, Address v, int64_t v_stride, Address keys, Address values,
                   int kv_type, Address table, Address past, Address offsets, int64_t each, int64_t S, int64_t T,
                   int64_t h, int64_t d, int64_t B, int64_t P, int64_t count, double k_scale, double v_scale) {
  Pages pages(keys, values, table, past, offsets, each, S, h, d, B, P, count);
  pages.check("attend: append", [&](int64_t s) { return pages.past[s]; });
  with_type(type, [&](auto* x) {
    using X = std::remove_pointer_t<decltype(x)>;
    auto run = [&](auto* y) {
      append<X, std::remove_pointer_t<decltype(y)>>(pages, at<X>(k), k_stride, at<X>(v), v_stride, T, float(k_scale),
                                                    float(v_scale));
    };
    if (Type(kv_type) == Type::fp8)
      run(static_cast<fp8*>(nullptr));
    else
      with_type(kv_type, run);
  });
}

}  // namespace FATHOM_TIER
