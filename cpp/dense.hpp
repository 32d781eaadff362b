// Matrix products on packed panels: the layers forward, their input gradients, and their weight gradients.
//
// One register tile of `tile` rows by one panel runs over the whole depth in order, so an output element's sum has one
// order whatever the tile, the thread or the rows beside it. The finished tile passes through a small buffer in L1 to
// its epilogue; against the depth of the product that costs below 2 %, and it keeps the epilogues out of the register
// tile.
#pragma once

// Memory that will be wanted when a tile is done, fetched as it computes: `step` bytes of each place at every unit of
// depth. Asked for all at once it would take the places in the cache's queue that the tile's own operands need.
struct Ahead {
  const char* at[3];
  long step;
};

typedef void (*Tile)(const float*, long, long, const float*, long, int, float*, Ahead);

// c[i][:] = sum_k a[i * a_row + k * a_depth] * b[k * b_ld + :], in units
//
// The rows of A are addressed from a pointer for every third: left to itself, GCC keeps a distance per row, runs out of
// general registers, and the loop loses 4 %.
template <typename Unit, int tile, bool fetch>
void register_tile(const float* __restrict a, long a_row, long a_depth, const float* __restrict b, long b_ld, int depth,
                   float* __restrict c, Ahead ahead) {
  V acc[tile][vectors] = {};
  const float* third[(tile + 2) / 3];
#pragma GCC unroll 16
  for (int i = 0; i < tile; i += 3) {
    third[i / 3] = a + i * a_row;
    asm("" : "+r"(third[i / 3]));  // what it is made of is forgotten
  }
  for (int k = 0; k < depth; ++k, b += b_ld) {
    if constexpr (fetch)
      for (const char*& at : ahead.at) {
        __builtin_prefetch(at, 1);
        at += ahead.step;
      }
    V b0 = load(b), b1 = load(b + W);
#pragma GCC unroll 16
    for (int i = 0; i < tile; ++i) {
      V ai = broadcast(third[i / 3] + i % 3 * a_row);
      acc[i][0] = Unit::multiply_add(ai, b0, acc[i][0]);
      acc[i][1] = Unit::multiply_add(ai, b1, acc[i][1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < tile; i += 3) third[i / 3] += a_depth;
  }
#pragma GCC unroll 16
  for (int i = 0; i < tile; ++i) {
    store(c + i * panel, acc[i][0]);
    store(c + i * panel + W, acc[i][1]);
  }
}

struct TileTable {
  Tile run[max_tile];
};
template <typename Unit, bool fetch, int... tile>
constexpr TileTable tile_table(std::integer_sequence<int, tile...>) {
  return {{register_tile<Unit, tile + 1, fetch>...}};
}
template <typename Unit, bool fetch = false>
constexpr TileTable tiles = tile_table<Unit, fetch>(std::make_integer_sequence<int, max_tile>{});

// Rows [begin, end) of part i when n rows are dealt to `parts` tiles as evenly as can be, pairs together.
struct Part {
  int begin, end;
};
inline Part part(int n, int parts, int i) {
  long pairs = (n + 1) / 2;
  int begin = static_cast<int>(pairs * i / parts * 2), end = static_cast<int>(pairs * (i + 1) / parts * 2);
  return {begin, end < n ? end : n};
}

template <Activation activation>
inline V activate(V a) {
  if constexpr (activation == Activation::tanh) return tanh(a);
  if constexpr (activation == Activation::relu) return max(a, V{});
  if constexpr (activation == Activation::softplus) return softplus(a);
  if constexpr (activation == Activation::sigmoid) return sigmoid(a);
  return a;
}

// f'(a) from the stored h = f(a)
template <Activation activation>
inline V slope(V h) {
  if constexpr (activation == Activation::tanh) return 1.0f - h * h;
  if constexpr (activation == Activation::relu) return select(h > 0.0f, splat(1.0f), V{});
  if constexpr (activation == Activation::softplus) return one_minus_exp(h);
  if constexpr (activation == Activation::sigmoid) return h * (1.0f - h);
  return splat(1.0f);
}

// The epilogue of one finished row, both vectors of the panel; a missing row gives zeros.
struct Finished {
  V v[vectors];
};
template <typename Unit, Activation activation>
inline Finished finish_row(const Affine& g, const float* sums, int row, int column) {
  Finished c;
  for (int v = 0; v < vectors; ++v) {
    int j = column + v * W;
    c.v[v] = load(sums + v * W);
    if (!g.h) {
      c.v[v] = activate<activation>(g.bias ? c.v[v] + load(g.bias + j) : c.v[v]);
      continue;
    }
    V h;
    if constexpr (Unit::pairs)
      h = Unit::widened(g.h + row * g.h_ld + column / 2, v);
    else
      h = load(g.h + row * g.h_ld + j);
    c.v[v] = c.v[v] * slope<activation>(h);
  }
  if (activation == Activation::none && g.density) {
    const Density& p = *g.density;
    g.log_px[static_cast<long>(column / panel) * g.rows + row] =
        bernoulli_panel(p, p.x + row % p.x_rows * p.x_ld, column, c.v);
  }
  if (g.c)
    for (int v = 0; v < vectors; ++v) store(g.c + row * g.c_ld + column + v * W, c.v[v]);
  return c;
}

// Rows [row, row + rows) of one panel, `row` even.
template <typename Unit, Activation activation>
void finish_tile(const Affine& g, const float* tile, long tile_ld, int row, int rows, int column) {
  if constexpr (Unit::pairs) {
    for (int i = 0; i < rows; i += 2) {
      Finished c0 = finish_row<Unit, activation>(g, tile + i * tile_ld, row + i, column), c1 = {};
      if (i + 1 < rows) c1 = finish_row<Unit, activation>(g, tile + (i + 1) * tile_ld, row + i + 1, column);
      if (!g.pairs.along) continue;
      float* along = g.pairs.along + (row + i) * g.pairs.along_ld + column / 2;
      store(along, Unit::neighbours(c0.v[0], c0.v[1]));
      if (i + 1 < rows) store(along + g.pairs.along_ld, Unit::neighbours(c1.v[0], c1.v[1]));
      float* over = g.pairs.across + (row + i) / 2 * g.pairs.across_ld + column;
      for (int v = 0; v < vectors; ++v) store(over + v * W, Unit::across(c0.v[v], c1.v[v]));
    }
  } else {
    for (int i = 0; i < rows; ++i) finish_row<Unit, activation>(g, tile + i * tile_ld, row + i, column);
  }
}

int dense_affine_tasks(const Affine& g) { return g.panels * ceil_div(g.rows, max_tile); }

template <typename Unit, Activation activation>
void dense_affine(const Affine& g, int begin, int end) {
  alignas(64) float tile[max_tile * panel];
  int blocks = ceil_div(g.rows, max_tile);
  for (int task = begin; task < end; ++task) {
    int p = task / blocks;
    Part r = part(g.rows, blocks, task % blocks);
    tiles<Unit>.run[r.end - r.begin - 1](g.a + r.begin * g.a_ld, g.a_ld, 1, g.b + p * g.b_rows * panel, panel, g.depth,
                                         tile, {});
    finish_tile<Unit, activation>(g, tile, panel, r.begin, r.end - r.begin, p * panel);
  }
}

// r[i][j] -> r[j][i]: log2(W) perfect shuffles of the rows' lanes.
inline void transpose_square(V (&r)[W]) {
  VI low, high;
  for (int i = 0; i < W; ++i) {
    low[i] = i / 2 + (i & 1) * W;
    high[i] = low[i] + W / 2;
  }
  for (int round = 1; round < W; round *= 2) {
    V t[W];
    for (int i = 0; i < W / 2; ++i) {
#if defined(__clang__)
      for (int l = 0; l < W; ++l) {
        t[2 * i][l] = l & 1 ? r[i + W / 2][l / 2] : r[i][l / 2];
        t[2 * i + 1][l] = l & 1 ? r[i + W / 2][W / 2 + l / 2] : r[i][W / 2 + l / 2];
      }
#else
      t[2 * i] = __builtin_shuffle(r[i], r[i + W / 2], low);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + W / 2], high);
#endif
    }
    for (int i = 0; i < W; ++i) r[i] = t[i];
  }
}

// Rows [begin, end) of W in panel p, `begin` a multiple of the panel: refresh the forms derived from them.
template <typename Unit>
void derive_rows(const float* w, float* w16, float* wt, int fan_in, int panels, int p, int begin, int end) {
  constexpr int per_unit = Unit::pairs ? 2 : 1;
  for (int k = begin; k < end; k += W) {
    const float* from = w + (static_cast<long>(p) * fan_in + k) * panel;
    int rows = end - k < W ? end - k : W;
    if constexpr (Unit::pairs) {
      float* to = w16 + (static_cast<long>(p) * ceil_div(fan_in, 2) + k / 2) * panel;
      for (int i = 0; i < rows; i += 2)
        for (int v = 0; v < vectors; ++v)
          store(to + i / 2 * panel + v * W, Unit::across(load(from + i * panel + v * W),
                                                         i + 1 < rows ? load(from + (i + 1) * panel + v * W) : V{}));
    }
    for (int v = 0; wt && v < vectors / per_unit; ++v) {
      V r[W] = {};
      for (int i = 0; i < rows; ++i) {
        if constexpr (Unit::pairs)
          r[i] = Unit::neighbours(load(from + i * panel), load(from + i * panel + W));
        else
          r[i] = load(from + i * panel + v * W);
      }
      transpose_square(r);
      long unit = static_cast<long>(k / panel) * (panels * panel / per_unit) + p * (panel / per_unit) + v * W;
      for (int i = 0; i < W; ++i) store(wt + (unit + i) * panel + k % panel, r[i]);
    }
  }
}

void derive(const float* w, float* w16, float* wt, int fan_in, int panels, int begin, int end) {
  for (int p = begin; p < end; ++p) {
#if defined(__AVX512BF16__)
    if (w16) {
      derive_rows<Bfloat16>(w, w16, wt, fan_in, panels, p, 0, fan_in);
      continue;
    }
#endif
    derive_rows<Float>(w, w16, wt, fan_in, panels, p, 0, fan_in);
  }
}

#if defined(__AVX512BF16__)
// Row pairs [begin, end) of a float32 matrix, the padding of the last panel filled with zeros.
void to_pairs(const float* from, long ld, int rows, int columns, const Pairs& to, int begin, int end) {
  for (int pair = begin; pair < end; ++pair) {
    const float *r0 = from + 2 * pair * ld, *r1 = r0 + ld;
    const bool both = 2 * pair + 1 < rows;
    for (int j = 0; j < columns; j += panel) {
      V a[vectors], b[vectors];
      for (int v = 0; v < vectors; ++v) {
        int left = columns - j - v * W, lanes = left < 0 ? 0 : left < W ? left : W;
        a[v] = lanes == W ? load(r0 + j + v * W) : load(r0 + j + v * W, lanes);
        b[v] = !both ? V{} : lanes == W ? load(r1 + j + v * W) : load(r1 + j + v * W, lanes);
        store(to.across + pair * to.across_ld + j + v * W, Bfloat16::across(a[v], b[v]));
      }
      store(to.along + 2 * pair * to.along_ld + j / 2, Bfloat16::neighbours(a[0], a[1]));
      if (both) store(to.along + (2 * pair + 1) * to.along_ld + j / 2, Bfloat16::neighbours(b[0], b[1]));
    }
  }
}

void from_pairs(const float* along, float* to, int columns) {
  const uint16_t* from = reinterpret_cast<const uint16_t*>(along);
  for (int j = 0; j < columns; ++j) {
    uint32_t wide = static_cast<uint32_t>(from[j]) << 16;
    __builtin_memcpy(to + j, &wide, sizeof wide);
  }
}
#endif

// A multiple of every panel width; 64 rows of x against 100 rows of dy stay in L1.
constexpr int weight_block = 64;

int dense_weight_tasks(const WeightGradient& g) { return g.panels * ceil_div(g.fan_in, weight_block); }

template <typename Unit>
void bias_gradient(const WeightGradient& g, int p) {
  V total[vectors] = {};
  V one = Unit::pairs ? from_bits(splat(0x3f803f80)) : splat(1.0f);
  for (int m = 0; m < g.depth; ++m)
    for (int v = 0; v < vectors; ++v)
      total[v] = Unit::multiply_add(one, load(g.dy + m * g.dy_ld + p * panel + v * W), total[v]);
  alignas(64) float db[panel];
  for (int v = 0; v < vectors; ++v) store(db + v * W, total[v]);
  if (g.gb) {
    __builtin_memcpy(g.gb + p * panel, db, sizeof db);
    return;
  }
  float* s1 = g.bs[1] ? g.bs[1] + p * panel : nullptr;
  update(g.update, g.b + p * panel, g.bs[0] + p * panel, s1, db, panel);
}

// What the update of rows [k, k + rows) of W in panel p reads and writes.
template <typename Unit>
Ahead update_ahead(const WeightGradient& g, int p, int k, int rows) {
  constexpr int per_unit = Unit::pairs ? 2 : 1;
  const long at = (static_cast<long>(p) * g.fan_in + k) * panel;
  const long transposed = (static_cast<long>(k / panel) * g.panels * panel + p * panel + k % panel) / per_unit * panel;
  auto bytes = [](const float* from) { return reinterpret_cast<const char*>(from); };
  const float* third = g.ws[1] ? g.ws[1] + at : g.wt ? g.wt + transposed : g.w + at;
  return {{bytes(g.w + at), bytes(g.ws[0] + at), bytes(third)},
          ceil_div(rows * panel * static_cast<int>(sizeof(float)), g.depth)};
}

template <typename Unit>
void dense_weight_gradient(const WeightGradient& g, int begin, int end) {
  alignas(64) float tile[max_tile * panel];
  int blocks = ceil_div(g.fan_in, weight_block);
  for (int task = begin; task < end; ++task) {
    int p = task / blocks, first = task % blocks * weight_block;
    int last = first + weight_block < g.fan_in ? first + weight_block : g.fan_in;
    int parts = ceil_div(last - first, max_tile);
    for (int i = 0; i < parts; ++i) {
      Part r = part(last - first, parts, i);
      int k = first + r.begin, rows = r.end - r.begin;
      const float *x = g.x + k, *dy = g.dy + p * panel;
      long at = (static_cast<long>(p) * g.fan_in + k) * panel;
      if (g.gw) {
        tiles<Unit>.run[rows - 1](x, 1, g.x_ld, dy, g.dy_ld, g.depth, g.gw + at, {});
      } else {
        tiles<Unit, true>.run[rows - 1](x, 1, g.x_ld, dy, g.dy_ld, g.depth, tile, update_ahead<Unit>(g, p, k, rows));
        update(g.update, g.w + at, g.ws[0] + at, g.ws[1] ? g.ws[1] + at : nullptr, tile, rows * panel);
      }
    }
    if (first == 0) bias_gradient<Unit>(g, p);
    if (!g.gw && (g.w16 || g.wt)) derive_rows<Unit>(g.w, g.w16, g.wt, g.fan_in, g.panels, p, first, last);
  }
}
