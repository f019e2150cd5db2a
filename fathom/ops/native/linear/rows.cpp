// Rows made ready for a product: in the type it multiplies, with zeros up to whole blocks.
#include <type_traits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "linear/panel.h"

namespace FATHOM_TIER {

struct StagedRows {};
struct StagedPointers {};

int64_t row_bytes(Arithmetic arithmetic, int64_t columns) {
  int64_t blocks = blocks_of(columns);
  switch (arithmetic) {
    case Arithmetic::wide: return blocks * BLOCK * 4;
    case Arithmetic::pairs: return blocks * BLOCK * 2;
    default: return (blocks * (BLOCK + 4) + 4 + 63) / 64 * 64;
  }
}

template <class X, class T>
static void widen_row(const T* from, X* to, int64_t I, int64_t padded) {
  for (int64_t i = 0; i < I; i += W) store_upto(to + i, load_upto(from + i, I - i), I - i);
  for (int64_t i = I; i < padded; i++) to[i] = narrow<X>(0.0f);
}

// Whole numbers: x / scale to the nearest, with scale = max |x| / 127, in the order in which a lane's nibbles lie.
template <class T>
static void quantise_row(const T* from, int8_t* to, int64_t I, int64_t blocks) {
  static constexpr int ORDER[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
  vf most{};
  for (int64_t i = 0; i < I; i += W) {
    vf v = load_upto(from + i, I - i);
    most = max(most, max(v, -v));
  }
  float largest = max(most), inverse = largest > 0.0f ? 127.0f / largest : 0.0f, scale = largest / 254.0f;
  for (int64_t b = 0; b < blocks; b++) {
    alignas(64) float values[BLOCK];
    for (int i = 0; i < BLOCK; i += W) store(values + i, round(load_upto(from + b * BLOCK + i, I - b * BLOCK - i) * splat(inverse)));
    int32_t sum = 0;
    for (int i = 0; i < BLOCK; i++) {
      int32_t whole = int32_t(values[ORDER[i]]);
      sum += whole;
      to[b * BLOCK + i] = int8_t(whole);
    }
    int32_t correction = -12 * sum;
    std::memcpy(to + blocks * BLOCK + b * 4, &correction, 4);
  }
  std::memcpy(to + blocks * (BLOCK + 4), &scale, 4);
}

void stage_row(Arithmetic arithmetic, const void* from, int type, void* to, int64_t I) {
  int64_t blocks = blocks_of(I), padded = blocks * BLOCK;
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* x = static_cast<const T*>(from);
    if (arithmetic == Arithmetic::wide)
      widen_row(x, static_cast<float*>(to), I, padded);
    else if (arithmetic == Arithmetic::pairs)
      widen_row(x, static_cast<bf16*>(to), I, padded);
    else
      quantise_row(x, static_cast<int8_t*>(to), I, blocks);
  });
}

Rows::Rows(Arithmetic arithmetic, Address x, int64_t stride, int type, int64_t T, int64_t I) {
  pointers_ = Scratch<StagedPointers>::of<const void*>(T);
  bool half = Type(type) == Type::bf16;
  int64_t apart = stride * (half ? 2 : 4);
  bool ready = arithmetic == Arithmetic::pairs ? half : arithmetic == Arithmetic::wide && !half;
  if (ready && I % BLOCK == 0) {
    for (int64_t t = 0; t < T; t++) pointers_[t] = at<const uint8_t>(x) + t * apart;
    return;
  }
  int64_t bytes = row_bytes(arithmetic, I);
  uint8_t* staged = Scratch<StagedRows>::of<uint8_t>(T * bytes);
  share(T, 0.15 * double(I), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      pointers_[t] = staged + t * bytes;
      stage_row(arithmetic, at<const uint8_t>(x) + t * apart, type, staged + t * bytes, I);
    }
  });
}

}  // namespace FATHOM_TIER
