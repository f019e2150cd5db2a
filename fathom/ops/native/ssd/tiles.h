// What forward and backward of the scan share: tiles of one chunk in fp32, padded to whole vectors.
//
// Promise: padding of channels and states is zero; rows past a chunk's last token are zero where
// `load_tile` made the tile.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "ssd/product.h"
#include "ssd/ssd.h"

namespace FATHOM_TIER {

inline int64_t whole_vectors(int64_t n) { return (n + W - 1) / W * W; }

// Memory of one piece of work, aligned, gone with it.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    for (float* p : held_) std::free(p);
  }
  float* take(int64_t floats) {
    void* p = std::aligned_alloc(64, size_t(floats * 4 + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    held_.push_back(static_cast<float*>(p));
    return held_.back();
  }

 private:
  std::vector<float*> held_;
};

// The sizes of a scan with what follows from them.
struct Scan : ScanInputs, ScanSizes {
  int64_t R, Pw, Nw, Qw, state;  // heads a group; padded P, N, Q; values of one head's state

  Scan(const ScanInputs& inputs, const ScanSizes& sizes) : ScanInputs(inputs), ScanSizes(sizes) {
    R = H / G, Pw = whole_vectors(P), Nw = whole_vectors(N), Qw = whole_vectors(Q), state = N * Pw;
  }
  int64_t first_token(int64_t k) const { return at<int64_t>(pieces)[2 * k]; }
  int64_t tokens(int64_t k) const { return at<int64_t>(pieces)[2 * k + 1]; }
  int64_t first_chunk(int64_t s) const { return at<int64_t>(firsts)[s]; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t s = 0; s < S; s++) most = std::max(most, first_chunk(s + 1) - first_chunk(s));
    return most;
  }
  // Nanoseconds for the forward pass of one chunk and one group, roughly.
  double cost() const { return 0.02 * double(Q * R) * double(4 * P * N + P * Q); }

  // Whether each sequence and group is one thread's walk over its chunks (states stay in cache), or
  // chunks are shared out too, with a short walk between. Results are the same bits either way.
  bool walks() const {
    int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads(), walks = S * G;
    double even = double(K * G) / double(threads);
    double rounds = double((walks + threads - 1) / threads) * double(K * G) / double(walks);
    return std::max(rounds, double(longest())) <= 1.25 * even;
  }
};

template <int... I>
inline vf zip_low(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I % 2 * W + I / 2)...);
}

template <int... I>
inline vf zip_high(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I % 2 * W + W / 2 + I / 2)...);
}

// W vectors as the rows of a matrix, transposed in place.
inline void transpose(vf (&m)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  vf t[W];
#pragma GCC unroll 4
  for (int half = 1; half < W; half *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; i++) {
      t[2 * i] = zip_low(m[i], m[i + W / 2], lanes);
      t[2 * i + 1] = zip_high(m[i], m[i + W / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) m[i] = t[i];
  }
}

// in [rows, columns] -> out [columns, rows]; with `padded` rows of out are filled up with zeros to
// whole vectors.
inline void transpose(const float* in, int64_t in_step, int64_t rows, int64_t columns, float* out,
                      int64_t out_step, bool padded) {
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
      vf m[W];
      for (int i = 0; i < W; i++)
        m[i] = r + i < rows ? load_upto(in + (r + i) * in_step + c, columns - c) : vf{};
      transpose(m);
      int64_t wanted = std::min<int64_t>(W, columns - c);
      for (int64_t i = 0; i < wanted; i++)
        store_upto(out + (c + i) * out_step + r, m[i], padded ? W : rows - r);
    }
}

// Rows of `width` values, `step` apart -> tile [height, padded width] in fp32; rows from `rows` on and
// padding are zero.
inline void load_tile(Address from, int type, int64_t step, int64_t rows, int64_t width, float* tile,
                      int64_t height) {
  int64_t padded = whole_vectors(width);
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* in = at<T>(from);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t c = 0; c < width; c += W)
        store(tile + i * padded + c, load_upto(in + i * step + c, width - c));
  });
  std::fill(tile + rows * padded, tile + height * padded, 0.0f);
}

// The address of value `index` of a tensor.
inline Address value_at(Address base, int64_t index, int type) {
  return base + Address(index) * (Type(type) == Type::fp32 ? 4 : 2);
}

// Ask for a row that will be read or written soon: rows of one head lie far apart, so nothing else
// guesses them.
inline void prefetch(Address row, int64_t values, int type) {
  for (Address p = row, end = value_at(row, values, type); p < end; p += 64)
    __builtin_prefetch(at<char>(p));
}

// The decays of one head over one chunk.
struct Decays {
  float* cum;         // [Q] running sums of dt A
  float* from_start;  // [Q] e^cum
  float* to_end;      // [Q] e^(last cum - cum)
  float* step;        // [Q] dt
  float whole;        // e^(last cum)

  Decays(Scratch& scratch, const Scan& s)
      : cum(scratch.take(s.Qw)),
        from_start(scratch.take(s.Qw)),
        to_end(scratch.take(s.Qw)),
        step(scratch.take(s.Qw)),
        whole(1.0f) {}

  void read(const Scan& s, int64_t k, int64_t h) {
    int64_t q = s.tokens(k);
    const float* dt = at<float>(s.dt) + s.first_token(k) * s.dt_step + h;
    float rate = at<float>(s.A)[h], sum = 0.0f;
    for (int64_t i = 0; i < q; i++) {
      step[i] = dt[i * s.dt_step];
      sum = fma(step[i], rate, sum);
      cum[i] = sum;
    }
    for (int64_t i = q; i < s.Qw; i++) cum[i] = sum, step[i] = 0.0f;
    for (int64_t i = 0; i < q; i += W) {
      store(from_start + i, exp(load(cum + i)));
      store(to_end + i, exp(splat(sum) - load(cum + i)));
    }
    whole = from_start[q - 1];
  }

  // e^(cum_i - cum_j) for the W tokens from j on; zero for those after i.
  vf between(int64_t i, int64_t j) const {
    vf decay = exp(splat(cum[i]) - load(cum + j));
    vi lane;
    for (int l = 0; l < W; l++) lane[l] = l;
    return lane <= int32_t(i - j) ? decay : vf{};
  }
};

// B and C of one chunk and group, and their products.
struct GroupTile {
  float* B;       // [Q, N]
  float* C;       // [Q, N]
  float* scores;  // [Q, Q]: C_i B_j for j <= i; what lies past the diagonal is anything
  float* turned;  // [N, Q]: B the other way

  GroupTile(Scratch& scratch, const Scan& s)
      : B(scratch.take(s.Qw * s.Nw)),
        C(scratch.take(s.Qw * s.Nw)),
        scores(scratch.take(s.Qw * s.Qw)),
        turned(scratch.take(s.N * s.Qw)) {}

  void read(const Scan& s, int64_t k, int64_t g) {
    int64_t first = s.first_token(k), q = s.tokens(k);
    load_tile(value_at(s.B, first * s.B_step + g * s.N, s.B_type), s.B_type, s.B_step, q, s.N, B, s.Qw);
    load_tile(value_at(s.C, first * s.C_step + g * s.N, s.C_type), s.C_type, s.C_step, q, s.N, C, s.Qw);
  }

  void score(const Scan& s, int64_t k) {
    int64_t q = s.tokens(k);
    transpose(B, s.Nw, q, s.N, turned, s.Qw, true);
    product(Left::by_row, {q, whole_vectors(q), s.N, C, s.Nw, turned, s.Qw, scores, s.Qw},
            Part::columns_to_row);
  }
};

// How far a row of a lower triangle must be filled for `product`: the vectors up to this column.
inline int64_t filled(const Scan& s, int64_t i) {
  return std::min(s.Qw, whole_vectors(i + BLOCK_ROWS));
}

// Rows of tile [rows, padded width] times one factor each.
inline void scale_rows(const float* in, const float* factor, int64_t rows, int64_t padded, float* out) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t c = 0; c < padded; c += W)
      store(out + i * padded + c, load(in + i * padded + c) * splat(factor[i]));
}

}  // namespace FATHOM_TIER
