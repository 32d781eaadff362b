// The encoder's first layer from the nonzeros of the minibatch: its output, and its weight gradient with the update.
//
// A unit of zero adds nothing to a sum that runs in order, so these give the same bits as the dense products of
// dense.hpp, at a cost in proportion to the nonzeros.
#pragma once

constexpr int strip = 4;            // panels summed at a time: 8 accumulators hide the latency of a multiply-add
constexpr int sparse_rows = 50;     // rows of x in one task of sparse_affine
constexpr int sparse_depth = 64;    // units of W that stay in L1, 32 KB of a strip, while those rows pass over them
constexpr int sparse_columns = 16;  // rows of W in one task of sparse_weight_gradient

// Of n units, those with a bit set, in order; returns how many. There is room for a vector more.
int list_units(const float* units, int n, int32_t* index, float* value) {
  int count = 0, i = 0;
#if defined(__AVX512F__)
  __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; i + W <= n; i += W, places = _mm512_add_epi32(places, _mm512_set1_epi32(W))) {
    __m512i v = _mm512_loadu_si512(units + i);
    __mmask16 nonzero = _mm512_test_epi32_mask(v, v);
    _mm512_storeu_si512(value + count, _mm512_maskz_compress_epi32(nonzero, v));
    _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(nonzero, places));
    count += __builtin_popcount(nonzero);
  }
#endif
  for (; i < n; ++i) {
    int32_t unit;
    __builtin_memcpy(&unit, units + i, sizeof unit);
    __builtin_memcpy(value + count, &unit, sizeof unit);
    index[count] = i;
    count += unit != 0;
  }
  return count;
}

// Lists of the rows [begin, end) of x, n units wide, each in a place of its own.
void list_rows(const float* x, long ld, int n, const Lists& s, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    s.start[m] = m * s.room;
    s.end[m] = s.start[m] + list_units(x + m * ld, n, s.index + s.start[m], s.value + s.start[m]);
  }
}

// Lists of the columns [begin, end) of x, n units high, one after the other from the place of column `begin`. Columns
// are turned into rows a vector of them at a time, in `scratch` of W * n units and some.
void list_columns(const float* x, long ld, int n, const Lists& s, int begin, int end, float* scratch) {
  const int high = ceil_div(n, W) * W;
  int64_t next = begin * s.room;
  for (int k = begin; k < end; k += W) {
    const bool whole = k + W <= end;
    for (int m = 0; m < n; m += W) {
      V r[W] = {};
      for (int i = 0; i < W && m + i < n; ++i) {
        const float* from = x + (m + i) * ld + k;
        r[i] = whole ? load(from) : load(from, end - k);
      }
      transpose_square(r);
      for (int i = 0; i < W; ++i) store(scratch + i * high + m, r[i]);
    }
    for (int i = 0; i < W && k + i < end; ++i) {
      s.start[k + i] = next;
      next += list_units(scratch + i * high, high, s.index + next, s.value + next);
      s.end[k + i] = next;
    }
  }
}

// sum[p] += sum_i value[i] * b[index[i] * row + p * next : + panel], in order of i while index[i] < bound; returns i
template <typename Unit, int panels>
int64_t sum_strip(const int32_t* index, const float* value, int64_t i, int64_t end, int bound, const float* b, long row,
                  long next, float* sum, long sum_next) {
  V acc[panels][vectors];
#pragma GCC unroll 8
  for (int p = 0; p < panels; ++p) {
    acc[p][0] = load(sum + p * sum_next);
    acc[p][1] = load(sum + p * sum_next + W);
  }
  for (; i < end && index[i] < bound; ++i) {
    const float* from = b + index[i] * row;
    V v = broadcast(value + i);
#pragma GCC unroll 8
    for (int p = 0; p < panels; ++p) {
      acc[p][0] = Unit::multiply_add(v, load(from + p * next), acc[p][0]);
      acc[p][1] = Unit::multiply_add(v, load(from + p * next + W), acc[p][1]);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < panels; ++p) {
    store(sum + p * sum_next, acc[p][0]);
    store(sum + p * sum_next + W, acc[p][1]);
  }
  return i;
}

typedef int64_t (*Strip)(const int32_t*, const float*, int64_t, int64_t, int, const float*, long, long, float*, long);
template <typename Unit>
constexpr Strip strips[strip] = {sum_strip<Unit, 1>, sum_strip<Unit, 2>, sum_strip<Unit, 3>, sum_strip<Unit, 4>};

int sparse_affine_tasks(const Affine& g) { return ceil_div(g.panels, strip) * ceil_div(g.rows, sparse_rows); }

// Row by row, a strip of sums in registers, over blocks of W that stay in L1.
template <typename Unit, Activation activation>
void sparse_affine(const Affine& g, int begin, int end) {
  const Lists& s = *g.lists;
  const int blocks = ceil_div(g.rows, sparse_rows);
  const long next_panel = g.b_rows * panel;
  alignas(64) float sums[sparse_rows][strip * panel];
  for (int task = begin; task < end; ++task) {
    int p = task / blocks * strip, panels = g.panels - p < strip ? g.panels - p : strip;
    const Strip sum = strips<Unit>[panels - 1];
    Part r = part(g.rows, blocks, task % blocks);
    int64_t next[sparse_rows];
    __builtin_memcpy(next, s.start + r.begin, sizeof(int64_t) * (r.end - r.begin));
    __builtin_memset(sums, 0, sizeof sums);
    for (int k = 0; k < g.depth; k += sparse_depth)
      for (int m = r.begin, i = 0; m < r.end; ++m, ++i)
        next[i] = sum(s.index, s.value, next[i], s.end[m], k + sparse_depth, g.b + p * next_panel, panel, next_panel,
                      sums[i], panel);
    for (int i = 0; i < panels; ++i)
      finish_tile<Unit, activation>(g, sums[0] + i * panel, strip * panel, r.begin, r.end - r.begin, (p + i) * panel);
  }
}

constexpr int narrow = 2;  // panels of one task column by column: 100 rows of sums stay in L1
constexpr int ahead = 16;  // columns

int column_affine_tasks(const Affine& g) { return ceil_div(g.panels, narrow); }

// Column by column, where a row has a nonzero here and there: each row of W is read once, in order, for all rows of x.
template <typename Unit, Activation activation>
void column_affine(const Affine& g, int begin, int end) {
  const Lists& s = *g.columns;
  for (int task = begin; task < end; ++task) {
    int p = task * narrow, panels = g.panels - p < narrow ? g.panels - p : narrow;
    const float* b = g.b + p * g.b_rows * panel;
    __builtin_memset(g.sums, 0, sizeof(float) * g.rows * narrow * panel);
    for (int k = 0; k < g.depth; ++k) {
      if (k + ahead < g.depth && s.start[k + ahead] < s.end[k + ahead])
        for (int i = 0; i < panels; ++i)
          for (int v = 0; v < vectors; ++v) __builtin_prefetch(b + (i * g.b_rows + k + ahead) * panel + v * W);
      V w[narrow][vectors];
      for (int i = 0; i < narrow; ++i)  // the last panel twice when it stands alone
        for (int v = 0; v < vectors; ++v) w[i][v] = load(b + ((i < panels ? i : 0) * g.b_rows + k) * panel + v * W);
      for (int64_t n = s.start[k]; n < s.end[k]; ++n) {
        float* sum = g.sums + s.index[n] * (narrow * panel);
        V x = broadcast(s.value + n);
        for (int i = 0; i < narrow; ++i)
          for (int v = 0; v < vectors; ++v, sum += W) store(sum, Unit::multiply_add(x, w[i][v], load(sum)));
      }
    }
    for (int i = 0; i < panels; ++i)
      finish_tile<Unit, activation>(g, g.sums + i * panel, narrow * panel, 0, g.rows, (p + i) * panel);
  }
}

int sparse_weight_tasks(const WeightGradient& g) {
  return ceil_div(g.panels, strip) * ceil_div(g.fan_in, sparse_columns);
}

// Rows of W that no x of the minibatch touches are left alone where a gradient of zero changes nothing.
template <typename Unit>
void sparse_weight_gradient(const WeightGradient& g, int begin, int end) {
  const Lists& s = *g.lists;
  const bool skip = (g.update.rule == Rule::adagrad || g.update.rule == Rule::hold) && g.update.decay == 0;
  const int blocks = ceil_div(g.fan_in, sparse_columns);
  alignas(64) float dw[strip][sparse_columns * panel];
  for (int task = begin; task < end; ++task) {
    int p = task / blocks * strip, panels = g.panels - p < strip ? g.panels - p : strip;
    const Strip sum = strips<Unit>[panels - 1];
    int first = task % blocks * sparse_columns;
    int last = first + sparse_columns < g.fan_in ? first + sparse_columns : g.fan_in;
    __builtin_memset(dw, 0, sizeof dw);
    bool touched = false;
    for (int k = first; k < last; ++k) {
      int run = k;  // rows [run, k) of W are updated together
      for (; k < last && (s.start[k] < s.end[k] || !skip); ++k) {
        for (int i = 0; i < panels; ++i)  // the update's weights and state come while the sums are made
          for (int v = 0; v < vectors; ++v) {
            long to = (static_cast<long>(p + i) * g.fan_in + k) * panel + v * W;
            __builtin_prefetch(g.w + to, 1);
            __builtin_prefetch(g.ws[0] + to, 1);
          }
        sum(s.index, s.value, s.start[k], s.end[k], g.depth, g.dy + p * panel, g.dy_ld, panel,
            dw[0] + (k - first) * panel, sparse_columns * panel);
      }
      touched |= run < k;
      for (int i = 0; i < panels && run < k; ++i) {
        long at = (static_cast<long>(p + i) * g.fan_in + run) * panel;
        update(g.update, g.w + at, g.ws[0] + at, g.ws[1] ? g.ws[1] + at : nullptr, dw[i] + (run - first) * panel,
               static_cast<long>(k - run) * panel);
      }
    }
    for (int i = 0; i < panels; ++i) {
      if (touched && (g.w16 || g.wt)) derive_rows<Unit>(g.w, g.w16, g.wt, g.fan_in, g.panels, p + i, first, last);
      if (first == 0) bias_gradient<Unit>(g, p + i);
    }
  }
}

// The products, from lists where the caller found few nonzeros.

template <typename Unit, Activation activation>
void affine_from(const Affine& g, int begin, int end) {
  if (g.columns) return column_affine<Unit, activation>(g, begin, end);
  g.lists ? sparse_affine<Unit, activation>(g, begin, end) : dense_affine<Unit, activation>(g, begin, end);
}

template <Activation activation>
void affine_as(const Affine& g, int begin, int end) {
#if defined(__AVX512BF16__)
  if (g.bf16) return affine_from<Bfloat16, activation>(g, begin, end);
#endif
  affine_from<Float, activation>(g, begin, end);
}

int affine_tasks(const Affine& g) {
  if (g.columns) return column_affine_tasks(g);
  return g.lists ? sparse_affine_tasks(g) : dense_affine_tasks(g);
}

void affine(const Affine& g, int begin, int end) {
  switch (g.activation) {
    case Activation::none: return affine_as<Activation::none>(g, begin, end);
    case Activation::tanh: return affine_as<Activation::tanh>(g, begin, end);
    case Activation::relu: return affine_as<Activation::relu>(g, begin, end);
    case Activation::softplus: return affine_as<Activation::softplus>(g, begin, end);
    case Activation::sigmoid: return affine_as<Activation::sigmoid>(g, begin, end);
  }
}

int weight_tasks(const WeightGradient& g) { return g.lists ? sparse_weight_tasks(g) : dense_weight_tasks(g); }

template <typename Unit>
void weight_gradient_from(const WeightGradient& g, int begin, int end) {
  g.lists ? sparse_weight_gradient<Unit>(g, begin, end) : dense_weight_gradient<Unit>(g, begin, end);
}

void weight_gradient(const WeightGradient& g, int begin, int end) {
#if defined(__AVX512BF16__)
  if (g.bf16) return weight_gradient_from<Bfloat16>(g, begin, end);
#endif
  weight_gradient_from<Float>(g, begin, end);
}
