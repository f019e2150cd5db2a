// Random weights in each stored format, packed for the kernels, and the numbers that they stand for.
#pragma once

#include <cstdlib>
#include <memory>

#include "driver.h"
#include "linear/linear.h"

namespace FATHOM_TIER {

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};

// `count` matrices [O, I], each in panels of its own.
class Packed {
 public:
  Packed(Draw& draw, Format format, int64_t count, int64_t O, int64_t I)
      : values_(count * O * I), bytes_(panels_of(O) * panel_bytes(format, I)), I_(I),
        data_(static_cast<uint8_t*>(std::aligned_alloc(64, count * bytes_))) {
    for (int64_t i = 0; i < count; i++) {
      double* values = values_.data() + i * O * I;
      uint8_t* data = data_.get() + i * bytes_;
      switch (format) {
        case Format::fp32: plain(draw.normal<float>(O, I), format, values, data); break;
        case Format::bf16: plain(draw.normal<bf16>(O, I), format, values, data); break;
        default: codes(draw, format, O, values, data);
      }
    }
  }

  Address address() const { return Address(data_.get()); }
  double operator()(int64_t row, int64_t column) const { return values_[row * I_ + column]; }

 private:
  template <class T>
  void plain(Table<T> rows, Format format, double* values, uint8_t* data) {
    for (int64_t i = 0; i < rows.rows * I_; i++) values[i] = rows(i / I_, i % I_);
    there_and_back(format, rows.held, std::vector<uint8_t>(), rows.rows, data);
  }

  void codes(Draw& draw, Format format, int64_t O, double* values, uint8_t* data) {
    const bool four = format == Format::nvfp4;
    std::vector<uint8_t> held(four ? O * I_ / 2 : O * I_), scales(four ? O * I_ / BLOCK : 0);
    // neither NaN nor the largest exponents, which would hide all else
    for (uint8_t& x : held) x = uint8_t(four ? draw.below(256) : draw.below(2) * 128 + draw.below(80));
    for (uint8_t& x : scales) x = uint8_t(40 + draw.below(24));
    for (int64_t i = 0; i < O * I_; i++)
      values[i] = four ? double(E2M1[held[i / 2] >> (i % 2 * 4) & 15]) * e4m3(scales[i / BLOCK]) : e4m3(held[i]);
    there_and_back(format, held, scales, O, data);
  }

  template <class T>
  void there_and_back(Format format, const std::vector<T>& held, const std::vector<uint8_t>& scales, int64_t O,
                      uint8_t* data) {
    pack(int(format), Address(held.data()), Address(scales.data()), Address(data), 0, O, I_);
    std::vector<T> again(held.size());
    std::vector<uint8_t> scales_again(scales.size());
    unpack(int(format), Address(again.data()), Address(scales_again.data()), Address(data), 0, O, I_);
    Compare same(named("pack and unpack", int(format), O, I_), 0);
    same(std::memcmp(again.data(), held.data(), held.size() * sizeof(T)), 0);
    for (size_t i = 0; i < scales.size(); i++) same(scales_again[i], scales[i]);
  }

  std::vector<double> values_;
  int64_t bytes_, I_;
  std::unique_ptr<uint8_t, Free> data_;
};

}  // namespace FATHOM_TIER
