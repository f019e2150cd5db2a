// The scan backward: from each sequence's last chunk to its first, the gradient of the state in hand.
//
// With h = dL/dS after the chunk and du the gradient of dt x: the gradient of the log-decays is
// dcum_i = dy_i y_i - u_i du_i (+ <h, S after> at the last token), so no gradient of the Q x Q decays is
// ever formed (fathom/ops/ssd/README.md).
#include "ssd/tiles.h"

namespace FATHOM_TIER {

namespace {

struct Backward : Scan {
  Address dy, dfinal, inner, states;
  bool has_initial;
  Address dx, ddt, dA, dB, dC, dD, dinitial;
  float *dA_KH, *dD_KH;  // shares of the chunks, [K, H]

  Address x_row(int64_t k, int64_t i, int64_t h) const {
    return value_at(x, (first_token(k) + i) * x_step + h * P, x_type);
  }
  // A row of what lies as [T, H, P]: dy, dx, and inner, which is fp32.
  Address row(Address base, int64_t k, int64_t i, int64_t h, int type) const {
    return value_at(base, ((first_token(k) + i) * H + h) * P, type);
  }
  const float* kept(int64_t s, int64_t c, int64_t h) const {
    return at<float>(states) + ((first_chunk(s) + s + c) * H + h) * state;
  }
};

struct Tiles {
  Scratch scratch;
  GroupTile group;
  Decays decays;
  float *written, *written_turned;  // u = dt x [Q, P] and [P, Q]; the latter becomes what is sent on
  float *dy, *dy_turned;            // [Q, P] and [P, Q]; both become what was heard of the state
  float *pairs, *dpairs;            // [Q, Q]: scores times decays; dy_i u_j
  float* dwritten;                  // [Q, P]
  float* dscores;                   // [Q, Q]: of all heads of the group; zero past the diagonal
  float *dB_turned, *dC_turned;     // [N, Q]: through the states, of all heads of the group
  float *dB, *dC;                   // [Q, N]
  float *heard, *dcum;              // [Q]

  explicit Tiles(const Scan& s)
      : group(scratch, s),
        decays(scratch, s),
        written(scratch.take(s.Qw * s.Pw)),
        written_turned(scratch.take(s.Qw * s.Pw)),
        dy(scratch.take(s.Qw * s.Pw)),
        dy_turned(scratch.take(s.Qw * s.Pw)),
        pairs(scratch.take(s.Qw * s.Qw)),
        dpairs(scratch.take(s.Qw * s.Qw)),
        dwritten(scratch.take(s.Qw * s.Pw)),
        dscores(scratch.take(s.Qw * s.Qw)),
        dB_turned(scratch.take(s.Nw * s.Qw)),
        dC_turned(scratch.take(s.Nw * s.Qw)),
        dB(scratch.take(s.Qw * s.Nw)),
        dC(scratch.take(s.Qw * s.Nw)),
        heard(scratch.take(s.Qw)),
        dcum(scratch.take(s.Qw)) {}

  void read_dy(const Backward& b, int64_t k, int64_t h) {
    load_tile(b.row(b.dy, k, 0, h, b.x_type), b.x_type, b.H * b.P, b.tokens(k), b.P, dy, b.Qw);
  }
};

// h before the chunk = h after it, decayed + what the chunk's outputs ask of the state they found; needs
// t.dy scaled by from_start. `after` null: zero.
void ask(const Backward& b, Tiles& t, int64_t k, const float* after, float* before) {
  product(Left::by_depth, {b.N, b.Pw, b.tokens(k), t.group.C, b.Nw, t.dy, b.Pw, before, b.Pw, after,
                           &t.decays.whole, 0});
}

float dot(const float* a, const float* b, int64_t n) {
  vf sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int v = 0; v < 4; v++) sums[v] = fma(load(a + i + v * W), load(b + i + v * W), sums[v]);
  for (; i < n; i += W) sums[0] = fma(load(a + i), load(b + i), sums[0]);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Inside the chunk: t.pairs, and this head's share of t.dscores.
void pair_up(const Backward& b, Tiles& t, int64_t k, int64_t h) {
  int64_t q = b.tokens(k), qw = whole_vectors(q);
  transpose(t.written, b.Pw, q, b.P, t.written_turned, b.Qw, true);
  product(Left::by_row, {q, qw, b.P, t.dy, b.Pw, t.written_turned, b.Qw, t.dpairs, b.Qw},
          Part::columns_to_row);
  for (int64_t i = 0; i < q; i++) {
    prefetch(b.row(b.inner, k, i, h, 0), b.P, 0);
    prefetch(b.row(b.dx, k, i, h, b.x_type), b.P, b.x_type);
    if ((h + 1) % b.R) {
      prefetch(b.x_row(k, i, h + 1), b.P, b.x_type);
      prefetch(b.row(b.dy, k, i, h + 1, b.x_type), b.P, b.x_type);
    }
    int64_t row = i * b.Qw, j = 0, end = filled(b, i);
    for (; j <= i; j += W) {
      // choices, not only products: past the diagonal lie numbers that were never written
      vf decay = t.decays.between(i, j);
      auto none = decay == vf{};
      store(t.pairs + row + j, none ? vf{} : decay * load(t.group.scores + row + j));
      vf share = none ? vf{} : decay * load(t.dpairs + row + j);
      store(t.dscores + row + j, load(t.dscores + row + j) + share);
    }
    for (; j < end; j += W) store(t.pairs + row + j, vf{});
  }
}

// Gradients of dt and x from t.dwritten, and the head's shares of dA and dD.
template <class T>
void write_head(const Backward& b, Tiles& t, int64_t k, int64_t h, float dwhole) {
  int64_t first = b.first_token(k), q = b.tokens(k);
  float rate = at<float>(b.A)[h];
  vf skip = splat(at<float>(b.D)[h]), dskip{};
  for (int64_t i = 0; i < q; i++) {
    const T* x = at<T>(b.x_row(k, i, h));
    const float* inner = at<float>(b.row(b.inner, k, i, h, 0));
    T* dx = at<T>(b.row(b.dx, k, i, h, b.x_type));
    vf step = splat(t.decays.step[i]), heard{}, said{};
    for (int64_t p = 0; p < b.P; p += W) {
      vf own = load_upto(x + p, b.P - p), dy = load(t.dy + i * b.Pw + p);
      vf du = load(t.dwritten + i * b.Pw + p);
      heard = fma(dy, load_upto(inner + p, b.P - p), heard);
      said = fma(du, own, said);
      dskip = fma(dy, own, dskip);
      store_upto(dx + p, fma(skip, dy, du * step), b.P - p);
    }
    t.heard[i] = sum(said);
    t.dcum[i] = fma(-t.decays.step[i], t.heard[i], sum(heard));
  }
  float da = dwhole, drate = 0.0f;
  for (int64_t i = q - 1; i >= 0; i--) {
    da += t.dcum[i];
    at<float>(b.ddt)[(first + i) * b.H + h] = fma(da, rate, t.heard[i]);
    drate = fma(da, t.decays.step[i], drate);
  }
  b.dA_KH[k * b.H + h] = drate;
  b.dD_KH[k * b.H + h] = sum(dskip);
}

// One head of one chunk. `found` and `after` are the states around it, `h_after` the gradient of the
// latter; `found` or `h_after` null: zero. Leaves t.dy scaled by from_start.
void head(const Backward& b, Tiles& t, int64_t k, int64_t h, const float* found, const float* after,
          const float* h_after) {
  int64_t q = b.tokens(k), qw = whole_vectors(q);
  Decays& d = t.decays;
  d.read(b, k, h);
  load_tile(b.x_row(k, 0, h), b.x_type, b.x_step, q, b.P, t.written, b.Qw);
  scale_rows(t.written, d.step, q, b.Pw, t.written);
  t.read_dy(b, k, h);
  pair_up(b, t, k, h);
  if (h_after)
    product(Left::by_row, {q, b.Pw, b.N, t.group.B, b.Nw, h_after, b.Pw, t.dwritten, b.Pw});
  product(Left::by_depth,
          {q, b.Pw, q, t.pairs, b.Qw, t.dy, b.Pw, t.dwritten, b.Pw, h_after ? t.dwritten : nullptr,
           d.to_end, 1},
          Part::depth_from_row);
  float dwhole = h_after ? dot(h_after, after, b.state) : 0.0f;
  with_type(b.x_type, [&](auto* type) {
    write_head<std::remove_pointer_t<decltype(type)>>(b, t, k, h, dwhole);
  });

  // B and C through the states
  if (h_after) {
    for (int64_t p = 0; p < b.P; p++)
      for (int64_t j = 0; j < qw; j += W) {
        float* sent = t.written_turned + p * b.Qw + j;
        store(sent, load(sent) * load(d.to_end + j));
      }
    product(Left::by_row, {b.N, qw, b.P, h_after, b.Pw, t.written_turned, b.Qw, t.dB_turned, b.Qw,
                           t.dB_turned});
  }
  scale_rows(t.dy, d.from_start, q, b.Pw, t.dy);
  if (found) {
    transpose(t.dy, b.Pw, q, b.P, t.dy_turned, b.Qw, true);
    product(Left::by_row,
            {b.N, qw, b.P, found, b.Pw, t.dy_turned, b.Qw, t.dC_turned, b.Qw, t.dC_turned});
  }
}

void begin_group(const Backward& b, Tiles& t, int64_t k, int64_t g) {
  t.group.read(b, k, g);
  t.group.score(b, k);
  std::fill(t.dscores, t.dscores + b.Qw * b.Qw, 0.0f);
  std::fill(t.dB_turned, t.dB_turned + b.N * b.Qw, 0.0f);
  std::fill(t.dC_turned, t.dC_turned + b.N * b.Qw, 0.0f);
}

void store_tile(const float* tile, int64_t rows, int64_t width, Address to, int type, int64_t step) {
  with_type(type, [&](auto* t) {
    auto* out = at<std::remove_pointer_t<decltype(t)>>(to);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t c = 0; c < width; c += W)
        store_upto(out + i * step + c, load(tile + i * whole_vectors(width) + c), width - c);
  });
}

// dB and dC of the chunk and group: through the states, then inside the chunk.
void end_group(const Backward& b, Tiles& t, int64_t k, int64_t g) {
  int64_t q = b.tokens(k);
  transpose(t.dB_turned, b.Qw, b.N, q, t.dB, b.Nw, true);
  transpose(t.dC_turned, b.Qw, b.N, q, t.dC, b.Nw, true);
  product(Left::by_depth, {q, b.Nw, q, t.dscores, b.Qw, t.group.C, b.Nw, t.dB, b.Nw, t.dB},
          Part::depth_from_row);
  product(Left::by_row, {q, b.Nw, q, t.dscores, b.Qw, t.group.B, b.Nw, t.dC, b.Nw, t.dC},
          Part::depth_to_row);
  int64_t place = (b.first_token(k) * b.G + g) * b.N;
  store_tile(t.dB, q, b.N, value_at(b.dB, place, b.B_type), b.B_type, b.G * b.N);
  store_tile(t.dC, q, b.N, value_at(b.dC, place, b.C_type), b.C_type, b.G * b.N);
}

void load_dfinal(const Backward& b, int64_t s, int64_t h, float* to) {
  transpose(at<float>(b.dfinal) + (s * b.H + h) * b.P * b.N, b.N, b.P, b.N, to, b.Pw, true);
}

void store_dinitial(const Backward& b, int64_t s, int64_t h, const float* from) {
  transpose(from, b.Pw, b.N, b.P, at<float>(b.dinitial) + (s * b.H + h) * b.P * b.N, b.N, false);
}

// One group of one sequence, from its last chunk to its first.
void walk(const Backward& b, int64_t s, int64_t g) {
  Tiles t(b);
  float* held = t.scratch.take(b.R * b.state);
  int64_t begin = b.first_chunk(s), chunks = b.first_chunk(s + 1) - begin;
  if (b.dfinal)
    for (int64_t r = 0; r < b.R; r++) load_dfinal(b, s, g * b.R + r, held + r * b.state);
  for (int64_t c = chunks - 1; c >= 0; c--) {
    begin_group(b, t, begin + c, g);
    for (int64_t r = 0; r < b.R; r++) {
      int64_t h = g * b.R + r;
      float* own = held + r * b.state;
      const float* h_after = c < chunks - 1 || b.dfinal ? own : nullptr;
      head(b, t, begin + c, h, c > 0 || b.has_initial ? b.kept(s, c, h) : nullptr, b.kept(s, c + 1, h),
           h_after);
      if (c > 0 || b.dinitial) ask(b, t, begin + c, h_after, own);
    }
    end_group(b, t, begin + c, g);
  }
  if (b.dinitial)
    for (int64_t r = 0; r < b.R; r++) store_dinitial(b, s, g * b.R + r, held + r * b.state);
}

// The walk between chunks: what each asked becomes the gradient of the state before it, in its place.
// asked [K, H, state]; afterwards chunk c's place holds the gradient of the state it found.
void carry(const Backward& b, float* asked, int64_t s, int64_t h) {
  Scratch scratch;
  Decays d(scratch, b);
  int64_t begin = b.first_chunk(s), chunks = b.first_chunk(s + 1) - begin;
  float* last = scratch.take(b.state);
  if (b.dfinal) load_dfinal(b, s, h, last);
  for (int64_t c = chunks - 1; c >= 0; c--) {
    float* own = asked + ((begin + c) * b.H + h) * b.state;
    const float* after = c < chunks - 1 ? own + b.H * b.state : b.dfinal ? last : nullptr;
    if (!after || (c == 0 && !b.dinitial)) continue;
    d.read(b, begin + c, h);
    for (int64_t n = 0; n < b.state; n += W)
      store(own + n, fma(load(after + n), splat(d.whole), load(own + n)));
  }
  if (b.dinitial) store_dinitial(b, s, h, asked + (begin * b.H + h) * b.state);
}

// Chunks side by side: what each asks; the walk between; everything else.
void spread(const Backward& b) {
  Scratch scratch;
  float* asked = scratch.take(b.K * b.H * b.state);
  std::vector<int64_t> sequence(b.K);
  for (int64_t s = 0; s < b.S; s++)
    std::fill(sequence.begin() + b.first_chunk(s), sequence.begin() + b.first_chunk(s + 1), s);
  each(b.K * b.G, b.cost(), [&](int64_t i) {
    int64_t k = i / b.G, g = i % b.G;
    if (k == b.first_chunk(sequence[k]) && !b.dinitial) return;
    Tiles t(b);
    t.group.read(b, k, g);
    for (int64_t h = g * b.R; h < (g + 1) * b.R; h++) {
      t.decays.read(b, k, h);
      t.read_dy(b, k, h);
      scale_rows(t.dy, t.decays.from_start, b.tokens(k), b.Pw, t.dy);
      ask(b, t, k, nullptr, asked + (k * b.H + h) * b.state);
    }
  });
  each(b.S * b.H, double(b.state * b.K) / double(b.S),
       [&](int64_t i) { carry(b, asked, i / b.H, i % b.H); });
  each(b.K * b.G, 3 * b.cost(), [&](int64_t i) {
    int64_t k = i / b.G, g = i % b.G, s = sequence[k], c = k - b.first_chunk(s);
    bool last = k + 1 == b.first_chunk(s + 1);
    Tiles t(b);
    float* from_final = last && b.dfinal ? t.scratch.take(b.state) : nullptr;
    begin_group(b, t, k, g);
    for (int64_t h = g * b.R; h < (g + 1) * b.R; h++) {
      if (from_final) load_dfinal(b, s, h, from_final);
      head(b, t, k, h, c > 0 || b.has_initial ? b.kept(s, c, h) : nullptr, b.kept(s, c + 1, h),
           last ? from_final : asked + ((k + 1) * b.H + h) * b.state);
    }
    end_group(b, t, k, g);
  });
}

}  // namespace

void ssd_scan_backward(ScanInputs inputs, ScanSizes sizes, Address dy, Address dfinal, Address inner,
                       Address states, bool has_initial, Address dx, Address ddt, Address dA,
                       Address dB, Address dC, Address dD, Address dinitial) {
  Scratch shares;
  int64_t KH = sizes.K * sizes.H;
  Backward b{Scan(inputs, sizes), dy, dfinal, inner, states, has_initial, dx, ddt, dA, dB, dC, dD,
             dinitial, shares.take(KH), shares.take(KH)};
  if (b.walks())
    each(b.S * b.G, 3 * b.cost() * double(b.K) / double(b.S),
         [&](int64_t i) { walk(b, i / b.G, i % b.G); });
  else
    spread(b);
  for (int64_t h = 0; h < b.H; h++) {
    double rate = 0, skip = 0;
    for (int64_t k = 0; k < b.K; k++) rate += b.dA_KH[k * b.H + h], skip += b.dD_KH[k * b.H + h];
    at<float>(dA)[h] = float(rate), at<float>(dD)[h] = float(skip);
  }
}

}  // namespace FATHOM_TIER
