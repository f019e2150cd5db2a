// Small products C = A B with a row of C per row of A, in registers: scores (queries times keys), outputs
// (weights times values), and their gradients.
//
// Promise: an element of C is one sum in the order of B's rows, whatever stands beside it, so a row's bits do not
// depend on how many rows there are. Columns come in whole vectors: N is a multiple of W, B and C are as wide.
//
// B is [steps, N] fp32, or [steps, N, 2] bf16, where a step is two rows of B side by side in pairs.
#pragma once

#include "core/simd.h"

namespace FATHOM_TIER {

// fp32 times fp32.
struct Plain {
  using A = float;
  using B = float;
  static constexpr int pair = 1;
  template <int R, int V>
  static inline void step(vf (&c)[R][V], const A* a, int64_t stride, const B* b) {
    vf x[V];
    for (int v = 0; v < V; v++) x[v] = load(b + v * W);
    for (int r = 0; r < R; r++) {
      vf y = splat(a[r * stride]);
      for (int v = 0; v < V; v++) c[r][v] = fma(y, x[v], c[r][v]);
    }
  }
};

// fp32 times pairs of bf16, widened: two fma.
struct Widened {
  using A = float;
  using B = bf16;
  static constexpr int pair = 2;
  template <int R, int V>
  static inline void step(vf (&c)[R][V], const A* a, int64_t stride, const B* b) {
    vf low[V], high[V];
    for (int v = 0; v < V; v++) {
      vu both;
      std::memcpy(&both, b + v * 2 * W, sizeof both);
      low[v] = vf(both << 16);
      high[v] = vf(both & 0xffff0000u);
    }
    for (int r = 0; r < R; r++) {
      vf y = splat(a[r * stride]), z = splat(a[r * stride + 1]);
      for (int v = 0; v < V; v++) c[r][v] = fma(z, high[v], fma(y, low[v], c[r][v]));
    }
  }
};

#if defined(__AVX512BF16__)
// Pairs of bf16 times pairs of bf16, summed in fp32 by one instruction.
struct Paired {
  using A = bf16;
  using B = bf16;
  static constexpr int pair = 2;
  template <int R, int V>
  static inline void step(vf (&c)[R][V], const A* a, int64_t stride, const B* b) {
    __m512bh x[V];
    for (int v = 0; v < V; v++) std::memcpy(&x[v], b + v * 2 * W, sizeof x[v]);
    for (int r = 0; r < R; r++) {
      int32_t both;
      std::memcpy(&both, a + r * stride, sizeof both);
      __m512bh y = (__m512bh)_mm512_set1_epi32(both);
      for (int v = 0; v < V; v++) c[r][v] = _mm512_dpbf16_ps(c[r][v], y, x[v]);
    }
  }
};
#else
using Paired = Widened;
#endif

// Rows of C that are held in registers together, and vectors of each.
constexpr int ROWS = W == 16 ? 8 : 4;

// R rows and V vectors of C; a [R, steps], rows `rs` and steps `ks` values apart. What lies at `ahead` is asked for
// at the speed at which b is read, if `stride` is not 0.
template <class M, int R, int V>
static inline void block(const typename M::A* a, int64_t rs, int64_t ks, const typename M::B* b, int64_t ldb,
                         float* c, int64_t ldc, int64_t steps, bool add, const char* ahead, int64_t stride) {
  vf held[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) held[r][v] = vf{};
  if (add) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) held[r][v] = load(c + r * ldc + v * W);
  }
  for (int64_t k = 0; k < steps; k++) {
    for (int v = 0; v < V; v++) __builtin_prefetch(ahead + k * stride + v * 4 * W, 0, 2);
    M::template step<R, V>(held, a + k * ks, rs, b + k * ldb);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(c + r * ldc + v * W, held[r][v]);
}

// R rows and N columns.
template <class M, int R>
static void panel(const typename M::A* a, int64_t rs, int64_t ks, const typename M::B* b, int64_t ldb, float* c,
                  int64_t ldc, int64_t steps, int64_t N, bool add, const char* ahead) {
  constexpr int V = W == 16 && R <= 4 ? 4 : 2;
  // there must be something to ask for
  const int64_t stride = ahead ? 4 * W : 0;
  if (!ahead) ahead = reinterpret_cast<const char*>(c);
  int64_t n = 0;
  for (; n + V * W <= N; n += V * W)
    block<M, R, V>(a, rs, ks, b + n * M::pair, ldb, c + n, ldc, steps, add, ahead + n / W * steps * stride, V * stride);
  for (; n < N; n += W)
    block<M, R, 1>(a, rs, ks, b + n * M::pair, ldb, c + n, ldc, steps, add, ahead + n / W * steps * stride, stride);
}

// C [R, N] = A B, or C + A B if `add`. `next`: as many bytes as B has, which will be wanted next, or null.
template <class M>
static void product(const typename M::A* a, int64_t rs, int64_t ks, const typename M::B* b, int64_t ldb, float* c,
                    int64_t ldc, int64_t steps, int64_t R, int64_t N, bool add, const void* next = nullptr) {
  const char* ahead = static_cast<const char*>(next);
  int64_t r = 0;
  for (; r + ROWS <= R; r += ROWS, ahead = nullptr)
    panel<M, ROWS>(a + r * rs, rs, ks, b, ldb, c + r * ldc, ldc, steps, N, add, ahead);
  a += r * rs;
  c += r * ldc;
  switch (R - r) {
    case 1: return panel<M, 1>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
    case 2: return panel<M, 2>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
    case 3: return panel<M, 3>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
#if defined(__AVX512F__)
    case 4: return panel<M, 4>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
    case 5: return panel<M, 5>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
    case 6: return panel<M, 6>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
    case 7: return panel<M, 7>(a, rs, ks, b, ldb, c, ldc, steps, N, add, ahead);
#endif
    default: return;
  }
}

}  // namespace FATHOM_TIER
