// y = x W' for packed W.
#include "linear/linear.h"
#include "linear/panel.h"

namespace FATHOM_TIER {

// Nanoseconds that one panel takes for T rows: reading it, or multiplying.
double panel_cost(Format format, int64_t columns, int64_t T) {
  return double(panel_bytes(format, columns)) / 12.0 + double(T) * double(columns) * PANEL / 60.0;
}

// Rows that are multiplied at a time: as many as stay in a core's cache beside the panels.
static int64_t rows_at_once(Arithmetic arithmetic, int64_t columns, int64_t T) {
  return std::min(T, std::max<int64_t>(48, (256 << 10) / row_bytes(arithmetic, columns) / 12 * 12));
}

// x [T, I] of `type`, rows `stride` apart; data: panels of [O, I]; scale fp32 [1]; y [T, O] of the same type; `int8`: rows are
// rounded to int8 where weights are NVFP4
void linear(int format, Address x, int64_t stride, Address data, Address scale, Address y, int64_t T, int64_t I, int64_t O,
            int type, bool int8) {
  Weights w{Format(format), at<const uint8_t>(data), O, I, *at<const float>(scale)};
  Arithmetic arithmetic = arithmetic_of(w.format, type, int8);
  Rows rows(arithmetic, x, stride, type, T, I);
  auto panel = [&](int64_t j, int64_t from, int64_t count) {
    panel_product(w, j, arithmetic, rows.pointers() + from, count, [&](int64_t first, int n, const float* sums) {
      with_type(type, [&](auto* t) {
        using U = std::remove_pointer_t<decltype(t)>;
        emit_rows(at<U>(y) + (from + first) * O, O, j * PANEL, O, w.scale, n, sums);
      });
    });
  };
  int64_t panels = panels_of(O), block = rows_at_once(arithmetic, I, T);
  if (T < 16) {
    share(panels, panel_cost(w.format, I, T), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j++) panel(j, 0, T);
    });
    return;
  }
  // a group of panels meets one block of rows after the other
  int64_t group = std::max<int64_t>(1, (384 << 10) / panel_bytes(w.format, I));
  group = std::max<int64_t>(1, std::min(group, panels / (8 * omp_get_max_threads())));
  each((panels + group - 1) / group, panel_cost(w.format, I, T) * double(group), [&](int64_t g) {
    for (int64_t from = 0; from < T; from += block)
      for (int64_t j = g * group; j < std::min(panels, (g + 1) * group); j++) panel(j, from, std::min(block, T - from));
  });
}

}  // namespace FATHOM_TIER
