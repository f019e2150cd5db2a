// Values moved: rows picked by number, cells copied between layouts, and changed in type on the way.
#include "step/step.h"

namespace FATHOM_TIER {

// out [count, bytes] = the rows of table [rows, bytes] (`stride` bytes apart) that index [count] names.
// A number that names no row gives a row of set bits, which is NaN in every float type.
void gather_rows(Address table, int64_t stride, int64_t rows, Address index, int64_t index_bytes,
                 Address out, int64_t count, int64_t bytes) {
  share(count, 0.05 * double(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t row = index_bytes == 4 ? at<int32_t>(index)[i] : at<int64_t>(index)[i];
      if (0 <= row && row < rows)
        std::memcpy(at<char>(out) + i * bytes, at<char>(table) + row * stride, bytes);
      else
        std::memset(at<char>(out) + i * bytes, 0xff, bytes);
    }
  });
}

// Three axes of cells, and how far apart neighbours lie along each, in cells.
struct Walk {
  int64_t a, b, c, from_a, from_b, from_c, to_a, to_b, to_c;
};

template <class T, class U, class F>
static void walk(const T* from, U* to, const Walk& w, const F& row) {
  share(w.a * w.b, 0.3 * double(w.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t first = i / w.b, second = i % w.b;
      row(from + first * w.from_a + second * w.from_b, to + first * w.to_a + second * w.to_b);
    }
  });
}

template <class T>
static void copy_of(Address from, Address to, const Walk& w) {
  bool dense = w.from_c == 1 && w.to_c == 1;
  walk(at<T>(from), at<T>(to), w, [&](const T* x, T* y) {
    if (dense)
      std::memcpy(y, x, w.c * sizeof(T));
    else
      for (int64_t i = 0; i < w.c; i++) y[i * w.to_c] = x[i * w.from_c];
  });
}

// to [a, b, c] = from [a, b, c], cells of 1, 2, 4 or 8 bytes, strides in cells
void copy_cells(Address from, Address to, int64_t a, int64_t b, int64_t c, int64_t from_a, int64_t from_b,
                int64_t from_c, int64_t to_a, int64_t to_b, int64_t to_c, int64_t bytes) {
  Walk w{a, b, c, from_a, from_b, from_c, to_a, to_b, to_c};
  if (bytes == 8)
    copy_of<uint64_t>(from, to, w);
  else if (bytes == 4)
    copy_of<uint32_t>(from, to, w);
  else if (bytes == 2)
    copy_of<uint16_t>(from, to, w);
  else
    copy_of<uint8_t>(from, to, w);
}

template <class T, class U>
static void convert_of(Address from, Address to, const Walk& w) {
  bool dense = w.from_c == 1 && w.to_c == 1;
  walk(at<T>(from), at<U>(to), w, [&](const T* x, U* y) {
    int64_t i = 0;
    if (dense)
      for (; i + W <= w.c; i += W) store(y + i, load(x + i));
    for (; i < w.c; i++) y[i * w.to_c] = narrow<U>(widen(x[i * w.from_c]));
  });
}

// to [a, b, c] = from [a, b, c]: fp32 rounded to bf16, or bf16 widened to fp32, by the type of `from`
void convert_cells(Address from, Address to, int64_t a, int64_t b, int64_t c, int64_t from_a,
                   int64_t from_b, int64_t from_c, int64_t to_a, int64_t to_b, int64_t to_c,
                   int from_type) {
  Walk w{a, b, c, from_a, from_b, from_c, to_a, to_b, to_c};
  if (Type(from_type) == Type::fp32)
    convert_of<float, bf16>(from, to, w);
  else
    convert_of<bf16, float>(from, to, w);
}

}  // namespace FATHOM_TIER
