// Attention of a call's queries over their sequences' pages: prefill and decode alike.
//
// Promise: a query's bits depend on itself and its own history alone. History is cut into pieces of 512 tokens;
// each is weighed by itself and pieces are merged in order, whether one thread walks over all of them (many
// queries) or each is somebody's item (few queries).
#include <vector>

#include "attend/attend.h"
#include "attend/pages.h"
#include "attend/product.h"
#include "attend/scratch.h"
#include "attend/softmax.h"

namespace FATHOM_TIER {

// Queries (tokens times heads of one key-value head) that share a walk over the history.
constexpr int64_t TILE = 64;

// Rows [row, row + rows) of sequence s and key-value head `head`, over pieces [piece, end); row i is token
// i / G, query head i % G of the group. `part`: where the result of one piece of several is kept, or -1.
struct Item {
  int64_t s, head, row, rows, piece, end, part;
};

struct Call {
  Pages pages;
  int64_t q_stride, H, G;
  float c;        // what turns q k' into a power of two
  float v_scale;  // what turns a sum of stored values into values
  float* lse;     // [T, H], or null
};

// M: how products are made; X: type of q and y; K: type of the pages.
template <class M, class X, class K>
struct Forward {
  using A = typename M::A;
  using B = typename M::B;
  const Call& call;
  const X* q;
  X* y;
  float *parts_o, *parts_ml;  // [parts, TILE, D], [parts, 2, TILE]

  struct Room {
    A* query;         // [TILE, d]
    float *o, *m, *l; // [TILE, D], [TILE], [TILE]
    float* score;     // [ROWS, PIECE]
    A* weight;        // [ROWS, PIECE]
    float* out;       // [ROWS, D]
    B *keys, *values; // a piece, widened
    B* last;          // [D, 2]: the last value where their number is odd
  };

  Room room() const {
    thread_local Scratch scratch;
    const int64_t d = call.pages.d, D = call.pages.D, wide = sizeof(K) == 1 ? PIECE * D : 0;
    scratch.reserve(TILE * (d + D + 2) * 4 + ROWS * PIECE * 8 + ROWS * D * 4 + (2 * wide + 2 * D) * 2 + 1024);
    Room r;
    r.query = scratch.take<A>(TILE * d);
    r.o = scratch.take<float>(TILE * D);
    r.m = scratch.take<float>(TILE);
    r.l = scratch.take<float>(TILE);
    r.score = scratch.take<float>(ROWS * PIECE);
    r.weight = scratch.take<A>(ROWS * PIECE);
    r.out = scratch.take<float>(ROWS * D);
    r.keys = scratch.take<B>(wide);
    r.values = scratch.take<B>(wide);
    r.last = scratch.take<B>(2 * D);
    return r;
  }

  // Where page `i` of the piece lies.
  template <class T>
  const B* block(const T* stored, B* widened, int64_t i, int64_t size) const {
    if constexpr (sizeof(K) == 1)
      return widened + i * size;
    else
      return stored;
  }

  const B* keys(const Room& r, const Item& item, int64_t token) const {
    const Pages& p = call.pages;
    return block(p.template key_block<K>(p.page(item.s, token), item.head), r.keys, token % PIECE / p.P, p.d * p.P);
  }

  const B* values(const Room& r, const Item& item, int64_t token) const {
    const Pages& p = call.pages;
    return block(p.template value_block<K>(p.page(item.s, token), item.head), r.values, token % PIECE / p.P,
                 p.P * p.D);
  }

  // fp8 pages of tokens [begin, end) of a piece as bf16.
  void widen_piece(const Room& r, const Item& item, int64_t begin, int64_t end) const {
    if constexpr (sizeof(K) == 1) {
      const Pages& p = call.pages;
      for (int64_t token = begin, i = 0; token < end; token += p.P, i++) {
        int64_t page = p.page(item.s, token);
        widen_all(p.template key_block<K>(page, item.head), r.keys + i * p.d * p.P, p.d * p.P);
        widen_all(p.template value_block<K>(page, item.head), r.values + i * p.P * p.D, p.P * p.D);
      }
    }
  }

  // R queries a [R, d] against tokens [begin, begin + seen[i]), seen rising: m [R], l [R], r.out [R, D].
  // Meanwhile the values, and then the next piece's keys up to token `whole`, are asked for.
  void weigh_piece(const Room& r, const Item& item, const A* a, int64_t R, int64_t begin, const int64_t* seen,
                   float* m, float* l, int64_t whole) const {
    constexpr int pair = M::pair;
    const Pages& p = call.pages;
    auto ahead = [&](bool keys, int64_t token) -> const void* {
      if (sizeof(K) == 1 || token >= whole) return nullptr;
      int64_t page = p.page(item.s, token);
      return keys ? p.template key_block<K>(page, item.head) : p.template value_block<K>(page, item.head);
    };
    const int64_t n = seen[R - 1], d = p.d, D = p.D, P = p.P;
    for (int64_t j = 0; j < n; j += P) {
      int64_t some = std::min(P, n - j);
      product<M>(a, d, pair, keys(r, item, begin + j), P * pair, r.score + j, PIECE, d / pair, R,
                 (some + W - 1) / W * W, false, ahead(false, begin + j));
    }
    int64_t wide = (n + W - 1) / W * W;
    for (int64_t i = 0; i < R; i++)
      weigh(r.score + i * PIECE, seen[i], wide, call.c, r.weight + i * PIECE, m[i], l[i]);
    for (int64_t j = 0; j < n; j += P) {
      int64_t some = std::min(P, n - j), steps = some / pair;
      const B* v = values(r, item, begin + j);
      product<M>(r.weight + j, PIECE, pair, v, D * pair, r.out, D, steps, R, D, j > 0,
                 ahead(true, begin + j + PIECE));
      if (some % pair) {
        // the other half of the last pair was never written
        for (int64_t i = 0; i < D; i++) {
          r.last[2 * i] = v[steps * D * pair + 2 * i];
          r.last[2 * i + 1] = B{};
        }
        product<M>(r.weight + j + steps * pair, PIECE, pair, r.last, D * pair, r.out, D, 1, R, D, true);
      }
    }
  }

  void load_queries(const Room& r, const Item& item) const {
    const int64_t d = call.pages.d;
    for (int64_t i = 0; i < item.rows; i++) {
      int64_t token = call.pages.begin(item.s) + (item.row + i) / call.G, head = item.head * call.G + (item.row + i) % call.G;
      const X* from = q + token * call.q_stride + head * d;
      if constexpr (std::is_same_v<A, X>)
        std::memcpy(r.query + i * d, from, d * sizeof(X));
      else
        for (int64_t j = 0; j < d; j++) r.query[i * d + j] = narrow<A>(widen(from[j]));
    }
  }

  // Row i of the item: o / l into y, and the sum's logarithm.
  void finish(const Item& item, int64_t i, float m, float l, const float* o) const {
    const int64_t d = call.pages.d;
    int64_t token = call.pages.begin(item.s) + (item.row + i) / call.G, head = item.head * call.G + (item.row + i) % call.G;
    X* to = y + (token * call.H + head) * d;
    vf scale = splat(call.v_scale / l);
    for (int64_t j = 0; j < d; j += W) store_upto(to + j, load(o + j) * scale, d - j);
    if (call.lse) call.lse[token * call.H + head] = m + std::log2(l);
  }

  void run(const Item& item) const {
    Room r = room();
    const Pages& p = call.pages;
    load_queries(r, item);
    for (int64_t i = 0; i < item.rows; i++) r.m[i] = -INFINITY, r.l[i] = 0;
    const int64_t past = p.past[item.s], whole = past + (item.row + item.rows - 1) / call.G + 1;
    for (int64_t piece = item.piece; piece < item.end; piece++) {
      const int64_t begin = piece * PIECE;
      widen_piece(r, item, begin, std::min(begin + PIECE, whole));
      for (int64_t row = 0; row < item.rows; row += ROWS) {
        int64_t seen[ROWS], R = std::min<int64_t>(ROWS, item.rows - row), skip = 0;
        for (int64_t i = 0; i < R; i++) {
          int64_t visible = past + (item.row + row + i) / call.G + 1 - begin;
          seen[i] = std::clamp<int64_t>(visible, 0, PIECE);
          skip += visible <= 0;
        }
        if (skip == R) continue;
        float m[ROWS], l[ROWS];
        weigh_piece(r, item, r.query + (row + skip) * p.d, R - skip, begin, seen + skip, m, l,
                    row ? 0 : whole);
        for (int64_t i = skip; i < R; i++)
          merge(r.m[row + i], r.l[row + i], r.o + (row + i) * p.D, m[i - skip], l[i - skip],
                r.out + (i - skip) * p.D, p.D);
      }
    }
    if (item.part < 0) {
      for (int64_t i = 0; i < item.rows; i++) finish(item, i, r.m[i], r.l[i], r.o + i * p.D);
      return;
    }
    std::memcpy(parts_o + item.part * TILE * p.D, r.o, item.rows * p.D * sizeof(float));
    std::memcpy(parts_ml + item.part * 2 * TILE, r.m, item.rows * sizeof(float));
    std::memcpy(parts_ml + (item.part * 2 + 1) * TILE, r.l, item.rows * sizeof(float));
  }

  // The pieces of one item's rows, which lie one after the other.
  void gather(const Item& first, int64_t pieces) const {
    Room r = room();
    const int64_t D = call.pages.D;
    for (int64_t i = 0; i < first.rows; i++) {
      float m = -INFINITY, l = 0;
      for (int64_t part = first.part; part < first.part + pieces; part++) {
        const float *ml = parts_ml + part * 2 * TILE, *o = parts_o + (part * TILE + i) * D;
        // a piece that begins after this query
        if (ml[TILE + i] == 0) continue;
        merge(m, l, r.o, ml[i], ml[TILE + i], o, D);
      }
      finish(first, i, m, l, r.o);
    }
  }
};

// Who does what: few queries share their history by pieces, many walk over it tile by tile.
struct Plan {
  std::vector<Item> items, merges;
  std::vector<int64_t> pieces;  // of each merge
  int64_t parts = 0;
  double work = 0;  // products of a query and a token

  void make(const Pages& p, int64_t G) {
    items.clear(), merges.clear(), pieces.clear();
    parts = 0, work = 0;
    for (int64_t s = 0; s < p.S; s++) {
      const int64_t rows = p.fresh(s) * G, past = p.past[s];
      auto count = [&](int64_t end) { return (past + (end - 1) / G + PIECE) / PIECE; };
      for (int64_t head = 0; head < p.h; head++) {
        if (rows <= TILE && count(rows) > 1) {
          merges.push_back({s, head, 0, rows, 0, 0, parts});
          pieces.push_back(count(rows));
          for (int64_t i = 0; i < count(rows); i++) items.push_back({s, head, 0, rows, i, i + 1, parts++});
        } else {
          // the longest first
          for (int64_t row = (rows - 1) / TILE * TILE; row >= 0; row -= TILE) {
            int64_t some = std::min(TILE, rows - row);
            items.push_back({s, head, row, some, 0, count(row + some), -1});
          }
        }
      }
      work += double(rows * p.h) * double(past + p.fresh(s) / 2.0 + 1);
    }
  }
};

template <class M, class X, class K>
static void forward(const Call& call, const X* q, X* y) {
  thread_local Plan plan;
  thread_local Scratch parts;
  plan.make(call.pages, call.G);
  const int64_t D = call.pages.D;
  parts.reserve(plan.parts * TILE * (D + 2) * 4 + 256);
  Forward<M, X, K> f{call, q, y, parts.take<float>(plan.parts * TILE * D), parts.take<float>(plan.parts * TILE * 2)};
  const Plan& shared = plan;
  // about 25 multiplications and additions a nanosecond
  const double cost = 4.0 * double(call.pages.d) / 25.0 * plan.work / double(plan.items.size());
  each(int64_t(shared.items.size()), cost, [&](int64_t i) { f.run(shared.items[i]); });
  each(int64_t(shared.merges.size()), double(D) * 4.0,
       [&](int64_t i) { f.gather(shared.merges[i], shared.pieces[i]); });
}

void attend_forward(Address q, int64_t q_stride, int type, Address y, Address lse, Address keys, Address values,
                    int kv_type, Address table, Address past, Address offsets, int64_t each, int64_t S, int64_t T,
                    int64_t H, int64_t h, int64_t d, int64_t B, int64_t P, int64_t pages, double k_scale,
                    double v_scale) {
  (void)T;
  Call call{Pages(keys, values, table, past, offsets, each, S, h, d, B, P, pages), q_stride, H, H / h,
            float(k_scale / std::sqrt(double(d)) * LOG2_E), float(v_scale), at<float>(lse)};
  call.pages.check("attend", [](int64_t) { return int64_t(0); });
  with_type(type, [&](auto* x) {
    using X = std::remove_pointer_t<decltype(x)>;
    // products of pairs need both factors in bf16
    using M = std::conditional_t<std::is_same_v<X, bf16>, Paired, Widened>;
    if (Type(kv_type) == Type::fp32)
      forward<Plain, X, float>(call, at<X>(q), at<X>(y));
    else if (Type(kv_type) == Type::bf16)
      forward<M, X, bf16>(call, at<X>(q), at<X>(y));
    else
      forward<M, X, fp8>(call, at<X>(q), at<X>(y));
  });
}

}  // namespace FATHOM_TIER
