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

template <class S, int R>
static inline void tile(const S& s, int64_t blocks, const void* const* rows, int g0, vf (&sum)[R][GROUP]) {
  using A = typename S::Arithmetic;
  using X = typename A::X;
  const X* x[R];
  for (int r = 0; r < R; r++) x[r] = static_cast<const X*>(rows[r]);
  for (int64_t b = 0; b < blocks; b++) {
    vf block[R][GROUP] = {};
    auto& into = S::SCALED ? block : sum;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      typename S::Lanes lanes[GROUP];
#pragma GCC unroll 2
      for (int g = 0; g < GROUP; g++) lanes[g] = s.lanes(b, half, g0 + g);
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
        typename A::Pair w[GROUP];
#pragma GCC unroll 2
        for (int g = 0; g < GROUP; g++) w[g] = S::pair(lanes[g], p);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
          auto v = A::spread(x[r] + b * BLOCK + half * 8 + 2 * p);
#pragma GCC unroll 2
          for (int g = 0; g < GROUP; g++) into[r][g] = A::add(into[r][g], w[g], v);
        }
      }
    }
    if constexpr (S::SCALED) {
#pragma GCC unroll 2
      for (int g = 0; g < GROUP; g++) {
        vf scale = s.scale(b, g0 + g);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) sum[r][g] = fma(block[r][g], scale, sum[r][g]);
      }
    }
  }
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

struct Decoded {};
struct DecodedScales {};

inline void store_pair(float* p, const Two& w) {
  store(p, w.even);
  store(p + PANEL, w.odd);
}

#if defined(__AVX512BF16__)
inline void store_pair(bf16* p, __m512i w) { std::memcpy(p, &w, sizeof w); }
#endif

// A panel widened once, for more rows than one tile has. [blocks][16 k][32 o] fp32 or [blocks][8][32 o][2] bf16.
template <class S>
static typename S::Arithmetic::X* decode(const S& s, int64_t blocks) {
  using X = typename S::Arithmetic::X;
  X* panel = Scratch<Decoded>::of<X>(blocks * BLOCK * PANEL);
  constexpr int64_t LANE = sizeof(X) == 4 ? W : 2 * W;
  for (int64_t b = 0; b < blocks; b++)
    for (int half = 0; half < 2; half++)
      for (int g = 0; g < VECTORS; g++) {
        auto lanes = s.lanes(b, half, g);
        for (int p = 0; p < 4; p++)
          store_pair(panel + (b * BLOCK + half * 8 + 2 * p) * PANEL + g * LANE, S::pair(lanes, p));
      }
  return panel;
}

template <class S>
static float* decode_scales(const S& s, int64_t blocks) {
  float* scales = Scratch<DecodedScales>::of<float>(blocks * PANEL);
  for (int64_t b = 0; b < blocks; b++)
    for (int g = 0; g < VECTORS; g++) store(scales + b * PANEL + g * W, s.scale(b, g));
  return scales;
}

void panel_product(const Weights& w, int64_t panel, bool pairs, const void* const* x, int64_t T, Emit emit) {
  int64_t blocks = blocks_of(w.columns);
  const uint8_t* data = w.data + panel * panel_bytes(w.format, w.columns);
  const uint32_t* codes = reinterpret_cast<const uint32_t*>(data);
  const uint8_t* scales = data + blocks * block_bytes(Format::nvfp4);
  const bf16* halves = reinterpret_cast<const bf16*>(data);
#if defined(__AVX512BF16__)
  if (pairs) {
    if (w.format == Format::bf16) return all_rows(PairsBf16{halves}, blocks, x, T, emit);
    if (w.format == Format::fp8) {
      PairsFp8 source{data};
      return T > PLAIN ? all_rows(PairsBf16{decode(source, blocks)}, blocks, x, T, emit) : all_rows(source, blocks, x, T, emit);
    }
    PairsNvfp4 source{codes, scales};
    if (T <= SCALED) return all_rows(source, blocks, x, T, emit);
    return all_rows(PairsDecoded{decode(source, blocks), decode_scales(source, blocks)}, blocks, x, T, emit);
  }
#endif
  (void)pairs;
  switch (w.format) {
    case Format::fp32: return all_rows(WideFp32{reinterpret_cast<const float*>(data)}, blocks, x, T, emit);
    case Format::bf16: return all_rows(WideBf16{halves}, blocks, x, T, emit);
    case Format::fp8: {
      WideFp8 source{data};
      return T > PLAIN ? all_rows(WideFp32{decode(source, blocks)}, blocks, x, T, emit) : all_rows(source, blocks, x, T, emit);
    }
    default: {
      WideNvfp4 source{codes, scales};
      if (T <= SCALED) return all_rows(source, blocks, x, T, emit);
      return all_rows(WideDecoded{decode(source, blocks), decode_scales(source, blocks)}, blocks, x, T, emit);
    }
  }
}

struct StagedRows {};
struct StagedPointers {};

template <class X, class T>
static void stage(const T* from, X* to, int64_t I, int64_t padded) {
  for (int64_t i = 0; i < I; i += W) store_upto(to + i, load_upto(from + i, I - i), I - i);
  for (int64_t i = I; i < padded; i++) to[i] = narrow<X>(0.0f);
}

Rows::Rows(Format format, Address x, int64_t stride, int type, int64_t T, int64_t I) : pairs_(in_pairs(format, type)) {
  pointers_ = Scratch<StagedPointers>::of<const void*>(T);
  int64_t padded = blocks_of(I) * BLOCK;
  bool narrow_type = Type(type) == Type::bf16;
  if (padded == I && narrow_type == pairs_) {
    int64_t bytes = stride * (pairs_ ? 2 : 4);
    for (int64_t t = 0; t < T; t++) pointers_[t] = at<const uint8_t>(x) + t * bytes;
    return;
  }
  int64_t bytes = padded * (pairs_ ? 2 : 4);
  uint8_t* staged = Scratch<StagedRows>::of<uint8_t>(T * bytes);
  share(T, 0.1 * double(I), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      uint8_t* to = staged + t * bytes;
      pointers_[t] = to;
      if (pairs_)
        stage(at<bf16>(x) + t * stride, reinterpret_cast<bf16*>(to), I, padded);
      else if (narrow_type)
        stage(at<bf16>(x) + t * stride, reinterpret_cast<float*>(to), I, padded);
      else
        stage(at<float>(x) + t * stride, reinterpret_cast<float*>(to), I, padded);
    }
  });
}

}  // namespace FATHOM_TIER
