// The inner product loops: a tile of rows against a panel, sums over K in one fixed order.
//
// For every row and output: sum over blocks of 16 columns, in order, pairs of columns in order inside a block. With
// scaled formats a block's sum starts at zero and is added times its scale. How many rows a tile has changes nothing.
#include "linear/panel.h"

#include "core/parallel.h"
#include "core/scratch.h"
#include "linear/source.h"

namespace FATHOM_TIER {

// Rows of a tile: as many sums as the registers hold.
#if defined(__AVX512F__)
constexpr int PLAIN = 12, SCALED = 6;
#elif defined(__AVX2__)
constexpr int PLAIN = 5, SCALED = 3;
#else
constexpr int PLAIN = 4, SCALED = 2;
#endif

constexpr int GROUP = VECTORS < 2 ? VECTORS : 2;

// U blocks from `b` on. More than one at a time gives few rows enough independent sums to hide the latency of each;
// the order of additions is the same.
template <class S, int R, int U>
static inline void some_blocks(const S& s, int64_t b, int64_t blocks, const typename S::Arithmetic::X* const (&x)[R], int g0,
                               vf (&sum)[R][GROUP]) {
  using A = typename S::Arithmetic;
  typename A::Sum block[U][R][GROUP];
  if constexpr (S::SCALED)
    for (int u = 0; u < U; u++)
      for (int r = 0; r < R; r++)
        for (int g = 0; g < GROUP; g++) block[u][r][g] = A::start(x[r], blocks, b + u);
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    typename S::Lanes lanes[U][GROUP];
#pragma GCC unroll 4
    for (int u = 0; u < U; u++)
#pragma GCC unroll 2
      for (int g = 0; g < GROUP; g++) lanes[u][g] = s.lanes(b + u, half, g0 + g);
#pragma GCC unroll 4
    for (int p = 0; p < A::STEPS; p++) {
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) {
        typename A::Part w[GROUP];
#pragma GCC unroll 2
        for (int g = 0; g < GROUP; g++) w[g] = S::part(lanes[u][g], p);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
          auto v = A::spread(x[r] + (b + u) * BLOCK + half * 8 + p * (8 / A::STEPS));
#pragma GCC unroll 2
          for (int g = 0; g < GROUP; g++) {
            if constexpr (S::SCALED)
              block[u][r][g] = A::add(block[u][r][g], w[g], v);
            else
              sum[r][g] = A::add(sum[r][g], w[g], v);
          }
        }
      }
    }
  }
  if constexpr (S::SCALED) {
#pragma GCC unroll 4
    for (int u = 0; u < U; u++)
#pragma GCC unroll 2
      for (int g = 0; g < GROUP; g++) {
        vf scale = s.scale(b + u, g0 + g);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) sum[r][g] = fma(A::real(block[u][r][g]), scale, sum[r][g]);
      }
  }
}

template <class S, int R>
static inline void tile(const S& s, int64_t blocks, const void* const* rows, int g0, vf (&sum)[R][GROUP]) {
  using A = typename S::Arithmetic;
  using X = typename A::X;
  constexpr int U = S::SCALED && W == 16 ? (R == 1 ? 4 : R == 2 ? 2 : 1) : 1;
  const X* x[R];
  for (int r = 0; r < R; r++) x[r] = static_cast<const X*>(rows[r]);
  int64_t b = 0;
  for (; b + U <= blocks; b += U) some_blocks<S, R, U>(s, b, blocks, x, g0, sum);
  for (; b < blocks; b++) some_blocks<S, R, 1>(s, b, blocks, x, g0, sum);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GROUP; g++) sum[r][g] = A::finish(sum[r][g], x[r], blocks);
}

template <class S, int R>
static void some_rows(const S& s, int64_t blocks, const void* const* x, int64_t first, Emit emit) {
  alignas(64) float sums[R * PANEL];
  for (int g0 = 0; g0 < VECTORS; g0 += GROUP) {
    vf sum[R][GROUP] = {};
    tile<S, R>(s, blocks, x + first, g0, sum);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GROUP; g++) store(sums + r * PANEL + (g0 + g) * W, sum[r][g]);
  }
  emit(first, R, sums);
}

template <class S, int... R>
static void rest_of_rows(const S& s, int64_t blocks, const void* const* x, int64_t first, int64_t left, Emit emit,
                         std::integer_sequence<int, R...>) {
  ((left == R + 1 ? some_rows<S, R + 1>(s, blocks, x, first, emit) : void()), ...);
}

template <class S>
static void all_rows(const S& s, int64_t blocks, const void* const* x, int64_t T, Emit emit) {
  constexpr int R = S::SCALED ? SCALED : PLAIN;
  int64_t t = 0;
  for (; t + R <= T; t += R) some_rows<S, R>(s, blocks, x, t, emit);
  if (t < T) rest_of_rows(s, blocks, x, t, T - t, emit, std::make_integer_sequence<int, R - 1>());
}

struct WidenedPanel {};
struct WidenedScales {};

inline void store_part(float* p, const Two& w) {
  store(p, w.even);
  store(p + PANEL, w.odd);
}

#if defined(__AVX512BF16__)
inline void store_part(bf16* p, __m512i w) { std::memcpy(p, &w, sizeof w); }
#endif

inline void store_part(int8_t* p, vi w) { std::memcpy(p, &w, sizeof w); }

// A panel widened once, for more rows than one tile has: [blocks][16 k][32 o] fp32, [blocks][8][32 o][2] bf16 or
// [blocks][4][32 o][4] bytes.
template <class S>
static typename S::Arithmetic::X* decode(const S& s, int64_t blocks) {
  using A = typename S::Arithmetic;
  using X = typename A::X;
  X* panel = Scratch<WidenedPanel>::of<X>(blocks * BLOCK * PANEL);
  constexpr int64_t LANE = W * 4 / int64_t(sizeof(X)), STEP = 8 / A::STEPS;
  for (int64_t b = 0; b < blocks; b++)
    for (int half = 0; half < 2; half++)
      for (int g = 0; g < VECTORS; g++) {
        auto lanes = s.lanes(b, half, g);
        for (int p = 0; p < A::STEPS; p++)
          store_part(panel + (b * BLOCK + half * 8 + STEP * p) * PANEL + g * LANE, S::part(lanes, p));
      }
  return panel;
}

template <class S>
static float* decode_scales(const S& s, int64_t blocks) {
  float* scales = Scratch<WidenedScales>::of<float>(blocks * PANEL);
  for (int64_t b = 0; b < blocks; b++)
    for (int g = 0; g < VECTORS; g++) store(scales + b * PANEL + g * W, s.scale(b, g));
  return scales;
}

// Scaled codes: widened as they are read for one tile of rows, once before for more.
template <class D, class S>
static void scaled_rows(const S& source, int64_t blocks, const void* const* x, int64_t T, Emit emit) {
  if (T <= SCALED) return all_rows(source, blocks, x, T, emit);
  all_rows(D{decode(source, blocks), decode_scales(source, blocks)}, blocks, x, T, emit);
}

template <class D, class S>
static void plain_rows(const S& source, int64_t blocks, const void* const* x, int64_t T, Emit emit) {
  if (T <= PLAIN) return all_rows(source, blocks, x, T, emit);
  all_rows(D{decode(source, blocks)}, blocks, x, T, emit);
}

void panel_product(const Weights& w, int64_t panel, Arithmetic arithmetic, const void* const* x, int64_t T, Emit emit) {
  int64_t blocks = blocks_of(w.columns);
  const uint8_t* data = w.data + panel * panel_bytes(w.format, w.columns);
  const uint32_t* codes = reinterpret_cast<const uint32_t*>(data);
  const uint8_t* scales = data + blocks * block_bytes(Format::nvfp4);
  const bf16* halves = reinterpret_cast<const bf16*>(data);
  if (arithmetic == Arithmetic::quads) return scaled_rows<Decoded<QuadsBytes>>(QuadsNvfp4{codes, scales}, blocks, x, T, emit);
#if defined(__AVX512BF16__)
  if (arithmetic == Arithmetic::pairs) {
    if (w.format == Format::bf16) return all_rows(PairsBf16{halves}, blocks, x, T, emit);
    if (w.format == Format::fp8) return plain_rows<PairsBf16>(PairsFp8{data}, blocks, x, T, emit);
    return scaled_rows<Decoded<PairsBf16>>(PairsNvfp4{codes, scales}, blocks, x, T, emit);
  }
#endif
  switch (w.format) {
    case Format::fp32: return all_rows(WideFp32{reinterpret_cast<const float*>(data)}, blocks, x, T, emit);
    case Format::bf16: return all_rows(WideBf16{halves}, blocks, x, T, emit);
    case Format::fp8: return plain_rows<WideFp32>(WideFp8{data}, blocks, x, T, emit);
    default: return scaled_rows<Decoded<WideFp32>>(WideNvfp4{codes, scales}, blocks, x, T, emit);
  }
}

}  // namespace FATHOM_TIER
