// Matrix products on packed panels: the layers forward, their input gradients, and their weight gradients.
//
// One register tile of `tile` rows by one panel runs over the whole depth in order, so an output element's sum has one
// order whatever the tile, the thread or the rows beside it. The finished tile passes through a small buffer in L1 to
// its epilogue; against the depth of the product that costs below 2 %, and it keeps the epilogues out of the register
// tile.
#pragma once

typedef void (*Tile)(const float*, long, long, const float*, long, int, float*);

// c[i][:] = sum_k a[i * a_row + k * a_depth] * b[k * b_ld + :]
template <int tile>
void register_tile(const float* __restrict a, long a_row, long a_depth, const float* __restrict b, long b_ld, int depth,
                   float* __restrict c) {
  V acc[tile][vectors] = {};
  for (int k = 0; k < depth; ++k, a += a_depth, b += b_ld) {
    V b0 = load(b), b1 = load(b + W);
#pragma GCC unroll 16
    for (int i = 0; i < tile; ++i) {
      V ai = splat(a[i * a_row]);
      acc[i][0] += ai * b0;
      acc[i][1] += ai * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < tile; ++i) {
    store(c + i * panel, acc[i][0]);
    store(c + i * panel + W, acc[i][1]);
  }
}

template <int... tile>
constexpr auto tile_table(std::integer_sequence<int, tile...>) {
  struct Table {
    Tile run[sizeof...(tile)];
  };
  return Table{{register_tile<tile + 1>...}};
}
constexpr auto tiles = tile_table(std::make_integer_sequence<int, max_tile>{});

// [begin, end) of part i when n rows are dealt to `parts` tiles as evenly as can be.
struct Part {
  int begin, end;
};
inline Part part(int n, int parts, int i) {
  return {static_cast<int>(static_cast<long>(n) * i / parts), static_cast<int>(static_cast<long>(n) * (i + 1) / parts)};
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

template <Activation activation>
void finish_tile(const Affine& g, const float* tile, int row, int rows, int column) {
  for (int v = 0; v < vectors; ++v) {
    int j = column + v * W;
    V bias = g.bias ? load(g.bias + j) : V{};
    for (int i = 0; i < rows; ++i) {
      V c = load(tile + i * panel + v * W);
      if (g.h)
        c = c * slope<activation>(load(g.h + (row + i) * g.h_ld + j));
      else
        c = activate<activation>(c + bias);
      store(g.c + (row + i) * g.c_ld + j, c);
    }
  }
}

int dense_affine_tasks(const Affine& g) { return g.panels * ceil_div(g.rows, max_tile); }

template <Activation activation>
void dense_affine(const Affine& g, int begin, int end) {
  alignas(64) float tile[max_tile * panel];
  int blocks = ceil_div(g.rows, max_tile);
  for (int task = begin; task < end; ++task) {
    int p = task / blocks;
    Part r = part(g.rows, blocks, task % blocks);
    tiles.run[r.end - r.begin - 1](g.a + r.begin * g.a_ld, g.a_ld, 1, g.b + p * g.b_rows * panel, panel, g.depth, tile);
    finish_tile<activation>(g, tile, r.begin, r.end - r.begin, p * panel);
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

// Rows [begin, end) of W, begin a multiple of the panel, in panel p: refresh their place in W^T.
void transpose_rows(const float* w, float* wt, int fan_in, int panels, int p, int begin, int end) {
  for (int k = begin; k < end; k += W) {
    for (int v = 0; v < vectors; ++v) {
      V r[W] = {};
      for (int i = 0; i < W && k + i < end; ++i)
        r[i] = load(w + (static_cast<long>(p) * fan_in + k + i) * panel + v * W);
      transpose_square(r);
      float* out = wt + (static_cast<long>(k / panel) * panels * panel + p * panel + v * W) * panel + k % panel;
      for (int i = 0; i < W; ++i) store(out + i * panel, r[i]);
    }
  }
}

void transpose(const float* w, float* wt, int fan_in, int panels, int begin, int end) {
  for (int p = begin; p < end; ++p) transpose_rows(w, wt, fan_in, panels, p, 0, fan_in);
}

// A multiple of every panel width; 64 rows of x against 100 rows of dy stay in L1.
constexpr int weight_block = 64;

int dense_weight_tasks(const WeightGradient& g) { return g.panels * ceil_div(g.fan_in, weight_block); }

void bias_gradient(const WeightGradient& g, int p) {
  V total[vectors] = {};
  for (int m = 0; m < g.rows; ++m)
    for (int v = 0; v < vectors; ++v) total[v] += load(g.dy + m * g.dy_ld + p * panel + v * W);
  alignas(64) float db[panel];
  for (int v = 0; v < vectors; ++v) store(db + v * W, total[v]);
  if (g.gb) {
    __builtin_memcpy(g.gb + p * panel, db, sizeof db);
    return;
  }
  float* s1 = g.bs[1] ? g.bs[1] + p * panel : nullptr;
  update(g.update, g.b + p * panel, g.bs[0] + p * panel, s1, db, panel);
}

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
      long at = (static_cast<long>(p) * g.fan_in + k) * panel;
      float* dw = g.gw ? g.gw + at : tile;
      tiles.run[rows - 1](g.x + k, 1, g.x_ld, g.dy + p * panel, g.dy_ld, g.rows, dw);
      if (!g.gw) update(g.update, g.w + at, g.ws[0] + at, g.ws[1] ? g.ws[1] + at : nullptr, dw, rows * panel);
    }
    if (first == 0) bias_gradient(g, p);
    if (g.wt && !g.gw) transpose_rows(g.w, g.wt, g.fan_in, g.panels, p, first, last);
  }
}
