// y = x W' for packed W.
#include "linear/linear.h"
#include "linear/panel.h"

namespace FATHOM_TIER {

// Nanoseconds that one panel takes for T rows: reading it, or multiplying.
double panel_cost(Format format, int64_t columns, int64_t T) {
  return double(panel_bytes(format, columns)) / 12.0 + double(T) * double(columns) * PANEL / 60.0;
}

// x [T, I] of `type`, rows `stride` apart; data: panels of [O, I]; scale fp32 [1]; y [T, O] of the same type
void linear(int format, Address x, int64_t stride, Address data, Address scale, Address y, int64_t T, int64_t I, int64_t O,
            int type) {
  Weights w{Format(format), at<const uint8_t>(data), O, I, *at<const float>(scale)};
  Rows rows(w.format, x, stride, type, T, I);
  auto panel = [&](int64_t j) {
    panel_product(w, j, rows.pairs(), rows.pointers(), T, [&](int64_t first, int count, const float* sums) {
      with_type(type, [&](auto* t) {
        using U = std::remove_pointer_t<decltype(t)>;
        emit_rows(at<U>(y) + first * O, O, j * PANEL, O, w.scale, count, sums);
      });
    });
  };
  double cost = panel_cost(w.format, I, T);
  if (T < 16)
    share(panels_of(O), cost, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j++) panel(j);
    });
  else
    each(panels_of(O), cost, panel);
}

}  // namespace FATHOM_TIER
