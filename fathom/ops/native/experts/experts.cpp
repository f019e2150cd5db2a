// Routed experts in one call: y_t = sum over k of weight_tk down_e relu(up_e x_t)^2, with e = chosen_tk.
//
// Visits (token, k) are grouped by expert with pointers to the tokens' rows, so no token is copied; a visit's output is kept in fp32
// and a token's visits are added in the order of k, so a token's bits do not depend on who else visits its experts.
#include "experts/experts.h"

#include <vector>

#include "core/scratch.h"

namespace FATHOM_TIER {

struct HiddenRows {};
struct HiddenPointers {};
struct StagedHidden {};
struct VisitOutputs {};
struct VisitOrder {};
struct VisitPointers {};

// One expert's visits [begin, end) in the grouped order, and one of its panels.
struct Task {
  int64_t expert, panel, begin, end;
};

// Where each expert's visits begin in `order` [T K] (visit numbers grouped by expert); the last entry is the end.
static std::vector<int64_t> group(const int64_t* chosen, int64_t visits, int64_t E, int64_t* order) {
  std::vector<int64_t> begin(E + 1, 0);
  for (int64_t v = 0; v < visits; v++) begin[chosen[v] + 1]++;
  for (int64_t e = 0; e < E; e++) begin[e + 1] += begin[e];
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t v = 0; v < visits; v++) order[next[chosen[v]]++] = v;
  return begin;
}

static std::vector<Task> tasks_of(const std::vector<int64_t>& begin, int64_t panels) {
  std::vector<Task> tasks;
  for (int64_t e = 0; e + 1 < int64_t(begin.size()); e++)
    for (int64_t j = 0; begin[e] < begin[e + 1] && j < panels; j++) tasks.push_back({e, j, begin[e], begin[e + 1]});
  return tasks;
}

template <class F>
static void run(const std::vector<Task>& tasks, bool few, double cost, const F& f) {
  int64_t n = int64_t(tasks.size());
  if (few)
    share(n, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) f(tasks[i]);
    });
  else
    each(n, cost, [&](int64_t i) { f(tasks[i]); });
}

static inline vf squared_relu(vf v) {
  vf r = max(v, vf{});
  return r * r;
}

// relu(sums scale)^2 of one row's panel, rounded to the activations' type -> `to`
template <class Rounded, class X>
static void emit_hidden(X* to, int64_t left, float scale, const float* sums) {
  for (int64_t g = 0; g < PANEL && g < left; g += W) {
    Rounded held[W];
    store(held, squared_relu(splat(scale) * load(sums + g)));
    store(to + g, load(held));
  }
}

// x [T, D] of `type`; up: stack [E] of [I, D]; down: stack of [D, I]; scales fp32 [E]; chosen int64 [T, K];
// weights fp32 [T, K]; y [T, D] of `type`; `int8`: rows are rounded to int8 where weights are NVFP4
void experts(int format, Address x, int64_t stride, Address up, Address up_scale, Address down, Address down_scale,
             Address chosen_, Address weights_, Address y, int64_t T, int64_t D, int64_t I, int64_t E, int64_t K, int type,
             bool int8) {
  Format f = Format(format);
  Arithmetic arithmetic = arithmetic_of(f, type, int8);
  const int64_t* chosen = at<const int64_t>(chosen_);
  const float* weights = at<const float>(weights_);
  int64_t visits = T * K, padded = blocks_of(I) * BLOCK;
  int64_t* order = Scratch<VisitOrder>::of<int64_t>(visits);
  std::vector<int64_t> begin = group(chosen, visits, E, order);
  Rows rows(arithmetic, x, stride, type, T, D);
  bool few = visits < 64, rounded = Type(type) == Type::bf16;
  const void** from = Scratch<VisitPointers>::of<const void*>(visits);
  for (int64_t i = 0; i < visits; i++) from[i] = rows.pointers()[order[i] / K];

  // 1. up, squared: bf16 where pairs are multiplied, else fp32
  int64_t bytes = padded * (arithmetic == Arithmetic::pairs ? 2 : 4);
  uint8_t* hidden = Scratch<HiddenRows>::of<uint8_t>(visits * bytes);
  const void** hidden_rows = Scratch<HiddenPointers>::of<const void*>(visits);
  for (int64_t i = 0; i < visits; i++) hidden_rows[i] = hidden + i * bytes;
  int64_t up_bytes = panels_of(I) * panel_bytes(f, D), down_bytes = panels_of(D) * panel_bytes(f, I);
  double mean = double(visits) / double(std::max<int64_t>(1, std::min(E, visits)));
  run(tasks_of(begin, panels_of(I)), few, panel_cost(f, D, int64_t(mean)), [&](const Task& task) {
    Weights w{f, at<const uint8_t>(up) + task.expert * up_bytes, I, D, at<const float>(up_scale)[task.expert]};
    auto emit = [&](int64_t first, int count, const float* sums) {
      int64_t o = task.panel * PANEL;
      for (int r = 0; r < count; r++) {
        uint8_t* row = hidden + (task.begin + first + r) * bytes;
        if (arithmetic == Arithmetic::pairs)
          emit_hidden<bf16>(reinterpret_cast<bf16*>(row) + o, padded - o, w.scale, sums + r * PANEL);
        else if (rounded)
          emit_hidden<bf16>(reinterpret_cast<float*>(row) + o, padded - o, w.scale, sums + r * PANEL);
        else
          emit_hidden<float>(reinterpret_cast<float*>(row) + o, padded - o, w.scale, sums + r * PANEL);
      }
    };
    panel_product(w, task.panel, arithmetic, from + task.begin, task.end - task.begin, emit);
  });
  if (arithmetic == Arithmetic::quads) {
    int64_t whole = row_bytes(arithmetic, I);
    uint8_t* staged = Scratch<StagedHidden>::of<uint8_t>(visits * whole);
    share(visits, 0.15 * double(I), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        stage_row(arithmetic, hidden_rows[i], int(Type::fp32), staged + i * whole, I);
        hidden_rows[i] = staged + i * whole;
      }
    });
  }

  // 2. down: each visit by itself
  float* outputs = Scratch<VisitOutputs>::of<float>(visits * D);
  run(tasks_of(begin, panels_of(D)), few, panel_cost(f, I, int64_t(mean)), [&](const Task& task) {
    Weights w{f, at<const uint8_t>(down) + task.expert * down_bytes, D, I, at<const float>(down_scale)[task.expert]};
    panel_product(w, task.panel, arithmetic, hidden_rows + task.begin, task.end - task.begin,
                  [&](int64_t first, int count, const float* sums) {
                    for (int r = 0; r < count; r++)
                      emit_rows(outputs + order[task.begin + first + r] * D, D, task.panel * PANEL, D, w.scale, 1, sums + r * PANEL);
                  });
  });

  // 3. a token's visits, in their order
  with_type(type, [&](auto* t) {
    using U = std::remove_pointer_t<decltype(t)>;
    share(T, 0.2 * double(D * K), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)
        for (int64_t d = 0; d < D; d += W) {
          vf sum{};
          for (int64_t k = 0; k < K; k++) sum = fma(splat(weights[i * K + k]), load_upto(outputs + (i * K + k) * D + d, D - d), sum);
          store_upto(at<U>(y) + i * D + d, sum, D - d);
        }
    });
  });
}

}  // namespace FATHOM_TIER
