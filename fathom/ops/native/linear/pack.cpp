// Weights into their panels and back.
#include <cstring>
#include <type_traits>

#include "linear/linear.h"

namespace FATHOM_TIER {

// Where value (o, k) of a panel lies, in values of the format (not for nvfp4).
static int64_t place(Format format, int64_t o, int64_t k) {
  int64_t block = k / BLOCK, inside = k % BLOCK;
  if (format == Format::fp32) return (block * BLOCK + inside) * PANEL + o;
  return (block * 8 + inside / 2) * 2 * PANEL + 2 * o + inside % 2;
}

template <class T>
static void pack_plain(Format format, const T* values, T* panel, int64_t rows, int64_t columns) {
  std::memset(panel, 0, panel_bytes(format, columns));
  for (int64_t o = 0; o < rows; o++)
    for (int64_t k = 0; k < columns; k++) panel[place(format, o, k)] = values[o * columns + k];
}

template <class T>
static void unpack_plain(Format format, const T* panel, T* values, int64_t rows, int64_t columns) {
  for (int64_t o = 0; o < rows; o++)
    for (int64_t k = 0; k < columns; k++) values[o * columns + k] = panel[place(format, o, k)];
}

// codes [rows, columns / 2], the even column in the low nibble; scales [rows, columns / 16]
static void pack_nvfp4(const uint8_t* codes, const uint8_t* scales, uint8_t* panel, int64_t rows, int64_t columns) {
  int64_t blocks = columns / BLOCK;
  std::memset(panel, 0, panel_bytes(Format::nvfp4, columns));
  uint32_t* lanes = reinterpret_cast<uint32_t*>(panel);
  uint8_t* own = panel + blocks * block_bytes(Format::nvfp4);
  for (int64_t o = 0; o < rows; o++)
    for (int64_t b = 0; b < blocks; b++) {
      own[b * PANEL + o] = scales[o * blocks + b];
      for (int half = 0; half < 2; half++) {
        const uint8_t* four = codes + o * columns / 2 + b * 8 + half * 4;
        uint32_t lane = 0;
        for (int p = 0; p < 4; p++) lane |= uint32_t(four[p] & 15) << (4 * p) | uint32_t(four[p] >> 4) << (16 + 4 * p);
        lanes[(b * 2 + half) * PANEL + o] = lane;
      }
    }
}

static void unpack_nvfp4(const uint8_t* panel, uint8_t* codes, uint8_t* scales, int64_t rows, int64_t columns) {
  int64_t blocks = columns / BLOCK;
  const uint32_t* lanes = reinterpret_cast<const uint32_t*>(panel);
  const uint8_t* own = panel + blocks * block_bytes(Format::nvfp4);
  for (int64_t o = 0; o < rows; o++)
    for (int64_t b = 0; b < blocks; b++) {
      scales[o * blocks + b] = own[b * PANEL + o];
      for (int half = 0; half < 2; half++) {
        uint32_t lane = lanes[(b * 2 + half) * PANEL + o];
        uint8_t* four = codes + o * columns / 2 + b * 8 + half * 4;
        for (int p = 0; p < 4; p++) four[p] = uint8_t((lane >> (4 * p) & 15) | (lane >> (16 + 4 * p) & 15) << 4);
      }
    }
}

// f(panel, first value, rows) for each panel of rows [first, first + rows); first is a multiple of 32
template <class F>
static void each_panel(Format format, Address data, int64_t first, int64_t rows, int64_t columns, const F& f) {
  int64_t bytes = panel_bytes(format, columns);
  share(panels_of(rows), 64.0 * double(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t done = i * PANEL;
      f(at<uint8_t>(data) + (first / PANEL + i) * bytes, done * columns, std::min<int64_t>(PANEL, rows - done));
    }
  });
}

// f with a null pointer of the type in which a plain format's values are stored
template <class F>
static void with_values(Format format, const F& f) {
  if (format == Format::fp32)
    f(static_cast<float*>(nullptr));
  else if (format == Format::bf16)
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<uint8_t*>(nullptr));
}

// values of rows [first, first + rows) -> their panels
void pack(int format, Address values, Address scales, Address data, int64_t first, int64_t rows, int64_t columns) {
  Format f = Format(format);
  each_panel(f, data, first, rows, columns, [&](uint8_t* panel, int64_t begin, int64_t own) {
    if (f == Format::nvfp4)
      return pack_nvfp4(at<uint8_t>(values) + begin / 2, at<uint8_t>(scales) + begin / BLOCK, panel, own, columns);
    with_values(f, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      pack_plain(f, at<T>(values) + begin, reinterpret_cast<T*>(panel), own, columns);
    });
  });
}

// the inverse of `pack`
void unpack(int format, Address values, Address scales, Address data, int64_t first, int64_t rows, int64_t columns) {
  Format f = Format(format);
  each_panel(f, data, first, rows, columns, [&](const uint8_t* panel, int64_t begin, int64_t own) {
    if (f == Format::nvfp4)
      return unpack_nvfp4(panel, at<uint8_t>(values) + begin / 2, at<uint8_t>(scales) + begin / BLOCK, own, columns);
    with_values(f, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      unpack_plain(f, reinterpret_cast<const T*>(panel), at<T>(values) + begin, own, columns);
    });
  });
}

}  // namespace FATHOM_TIER
