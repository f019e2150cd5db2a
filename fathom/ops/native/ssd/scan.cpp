// The scan forward: what a chunk says to itself, what it adds to the state, what the state says to it.
#include "ssd/tiles.h"

namespace FATHOM_TIER {

int64_t ssd_state_values(int64_t P, int64_t N) { return N * whole_vectors(P); }

namespace {

struct Forward : Scan {
  Address initial, y, inner, states, final;

  Address x_row(int64_t k, int64_t i, int64_t h) const {
    return value_at(x, (first_token(k) + i) * x_step + h * P, x_type);
  }
  Address y_row(int64_t k, int64_t i, int64_t h) const {
    return value_at(y, ((first_token(k) + i) * H + h) * P, x_type);
  }
  // The state before (c = 0) or after the c-th chunk of sequence s, in `states`.
  float* kept(int64_t s, int64_t c, int64_t h) const {
    return at<float>(states) + ((first_chunk(s) + s + c) * H + h) * state;
  }
};

// One thread's tiles.
struct Tiles {
  Scratch scratch;
  GroupTile group;
  Decays decays;
  float* written;  // [Q, P]: dt x
  float* sent;     // [Q, P]: written, decayed to the chunk's end
  float* pairs;    // [Q, Q]: scores times decays; zero past the diagonal
  float* y;        // [Q, P]

  explicit Tiles(const Scan& s)
      : group(scratch, s),
        decays(scratch, s),
        written(scratch.take(s.Qw * s.Pw)),
        sent(scratch.take(s.Qw * s.Pw)),
        pairs(scratch.take(s.Qw * s.Qw)),
        y(scratch.take(s.Qw * s.Pw)) {}

  void read_head(const Forward& f, int64_t k, int64_t h) {
    decays.read(f, k, h);
    int64_t q = f.tokens(k);
    load_tile(f.x_row(k, 0, h), f.x_type, f.x_step, q, f.P, written, q);
    scale_rows(written, decays.step, q, f.Pw, written);
  }
};

// after = before decayed over the chunk + what its tokens add; `before` null: zero.
void add(const Forward& f, Tiles& t, int64_t k, const float* before, float* after) {
  int64_t q = f.tokens(k);
  scale_rows(t.written, t.decays.to_end, q, f.Pw, t.sent);
  product(Left::by_depth,
          {f.N, f.Pw, q, t.group.B, f.Nw, t.sent, f.Pw, after, f.Pw, before, &t.decays.whole, 0});
}

template <class T>
void write(const Forward& f, const Tiles& t, int64_t k, int64_t h) {
  int64_t first = f.first_token(k), q = f.tokens(k);
  vf skip = splat(at<float>(f.D)[h]);
  for (int64_t i = 0; i < q; i++) {
    const T* x = at<T>(f.x_row(k, i, h));
    T* y = at<T>(f.y_row(k, i, h));
    float* inner = f.inner ? at<float>(f.inner) + ((first + i) * f.H + h) * f.P : nullptr;
    for (int64_t p = 0; p < f.P; p += W) {
      vf own = load(t.y + i * f.Pw + p);
      if (inner) store_upto(inner + p, own, f.P - p);
      store_upto(y + p, fma(skip, load_upto(x + p, f.P - p), own), f.P - p);
    }
  }
}

// y of one head and chunk, which finds the state `found` (null: zero).
void speak(const Forward& f, Tiles& t, int64_t k, int64_t h, const float* found) {
  int64_t q = f.tokens(k);
  const Decays& d = t.decays;
  for (int64_t i = 0; i < q; i++) {
    prefetch(f.y_row(k, i, h), f.P, f.x_type);
    if ((h + 1) % f.R) prefetch(f.x_row(k, i, h + 1), f.P, f.x_type);
    int64_t j = 0, end = filled(f, i);
    for (; j <= i; j += W) {
      // a choice, not only a product: past the diagonal lie numbers that were never written
      vf decay = d.between(i, j);
      vf score = load(t.group.scores + i * f.Qw + j);
      store(t.pairs + i * f.Qw + j, decay == vf{} ? vf{} : decay * score);
    }
    for (; j < end; j += W) store(t.pairs + i * f.Qw + j, vf{});
  }
  if (found)
    product(Left::by_row, {q, f.Pw, f.N, t.group.C, f.Nw, found, f.Pw, t.y, f.Pw});
  product(Left::by_row,
          {q, f.Pw, q, t.pairs, f.Qw, t.written, f.Pw, t.y, f.Pw, found ? t.y : nullptr, d.from_start, 1},
          Part::depth_to_row);
  with_type(f.x_type, [&](auto* type) { write<std::remove_pointer_t<decltype(type)>>(f, t, k, h); });
}

void load_initial(const Forward& f, int64_t s, int64_t h, float* to) {
  transpose(at<float>(f.initial) + (s * f.H + h) * f.P * f.N, f.N, f.P, f.N, to, f.Pw, true);
}

void store_final(const Forward& f, int64_t s, int64_t h, const float* from) {
  transpose(from, f.Pw, f.N, f.P, at<float>(f.final) + (s * f.H + h) * f.P * f.N, f.N, false);
}

// One group of one sequence, chunk after chunk.
void walk(const Forward& f, int64_t s, int64_t g) {
  Tiles t(f);
  float* own = f.states ? nullptr : t.scratch.take(f.R * f.state);
  int64_t begin = f.first_chunk(s), chunks = f.first_chunk(s + 1) - begin;
  auto held = [&](int64_t c, int64_t r) { return own ? own + r * f.state : f.kept(s, c, g * f.R + r); };
  if (f.initial)
    for (int64_t r = 0; r < f.R; r++) load_initial(f, s, g * f.R + r, held(0, r));
  for (int64_t c = 0; c < chunks; c++) {
    t.group.read(f, begin + c, g);
    t.group.score(f, begin + c);
    for (int64_t r = 0; r < f.R; r++) {
      const float* found = c > 0 || f.initial ? held(c, r) : nullptr;
      t.read_head(f, begin + c, g * f.R + r);
      speak(f, t, begin + c, g * f.R + r, found);
      add(f, t, begin + c, found, held(c + 1, r));
    }
  }
  for (int64_t r = 0; r < f.R; r++) store_final(f, s, g * f.R + r, held(chunks, r));
}

// The walk between chunks: what each added becomes the state after it.
void carry(const Forward& f, int64_t s, int64_t h) {
  Scratch scratch;
  Decays d(scratch, f);
  int64_t begin = f.first_chunk(s), chunks = f.first_chunk(s + 1) - begin;
  if (f.initial) load_initial(f, s, h, f.kept(s, 0, h));
  for (int64_t c = f.initial ? 0 : 1; c < chunks; c++) {
    d.read(f, begin + c, h);
    const float* before = f.kept(s, c, h);
    float* after = f.kept(s, c + 1, h);
    for (int64_t n = 0; n < f.state; n += W)
      store(after + n, fma(load(before + n), splat(d.whole), load(after + n)));
  }
  store_final(f, s, h, f.kept(s, chunks, h));
}

// Chunks side by side: what each adds; the walk between; what each says.
void spread(const Forward& f) {
  std::vector<int64_t> sequence(f.K);
  for (int64_t s = 0; s < f.S; s++)
    std::fill(sequence.begin() + f.first_chunk(s), sequence.begin() + f.first_chunk(s + 1), s);
  each(f.K * f.G, f.cost(), [&](int64_t i) {
    int64_t k = i / f.G, g = i % f.G, s = sequence[k], c = k - f.first_chunk(s);
    Tiles t(f);
    t.group.read(f, k, g);
    for (int64_t h = g * f.R; h < (g + 1) * f.R; h++) {
      t.read_head(f, k, h);
      add(f, t, k, nullptr, f.kept(s, c + 1, h));
    }
  });
  each(f.S * f.H, double(f.state * f.K) / double(f.S),
       [&](int64_t i) { carry(f, i / f.H, i % f.H); });
  each(f.K * f.G, f.cost(), [&](int64_t i) {
    int64_t k = i / f.G, g = i % f.G, s = sequence[k], c = k - f.first_chunk(s);
    Tiles t(f);
    t.group.read(f, k, g);
    t.group.score(f, k);
    for (int64_t h = g * f.R; h < (g + 1) * f.R; h++) {
      t.read_head(f, k, h);
      speak(f, t, k, h, c > 0 || f.initial ? f.kept(s, c, h) : nullptr);
    }
  });
}

}  // namespace

void ssd_scan(ScanInputs inputs, ScanSizes sizes, Address initial, Address y, Address inner,
              Address states, Address final) {
  Forward f{Scan(inputs, sizes), initial, y, inner, states, final};
  if (f.walks()) {
    each(f.S * f.G, f.cost() * double(f.K) / double(f.S), [&](int64_t i) { walk(f, i / f.G, i % f.G); });
    return;
  }
  Scratch held;
  if (!f.states) f.states = Address(held.take((f.K + f.S) * f.H * f.state));
  spread(f);
}

}  // namespace FATHOM_TIER
