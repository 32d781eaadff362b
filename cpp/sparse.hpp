// The encoder's first layer from the nonzeros of the minibatch: its output, and its weight gradient with the update.
//
// A zero of x adds nothing to a sum that runs in order, so these give the same bits as the dense products of dense.hpp,
// at a cost in proportion to the nonzeros.
#pragma once

constexpr int strip = 4;            // panels summed at a time: 8 accumulators hide the latency of a multiply-add
constexpr int sparse_rows = 50;     // rows of x in one task of sparse_affine
constexpr int sparse_depth = 64;    // rows of W that stay in L1, 32 KB of a strip, while those rows pass over them
constexpr int sparse_columns = 16;  // rows of W in one task of sparse_weight_gradient

// Row m of x to a list of its nonzeros, in order. The lists have room for a vector more than a row.
void list_row(const Nonzeros& s, int m, const float* x, int n) {
  int32_t* index = s.index + m * s.ld;
  float* value = s.value + m * s.ld;
  int count = 0, d = 0;
#if defined(__AVX512F__)
  __m512i columns = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; d + W <= n; d += W, columns = _mm512_add_epi32(columns, _mm512_set1_epi32(W))) {
    __m512 v = _mm512_loadu_ps(x + d);
    __mmask16 nonzero = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(nonzero, v));
    _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(nonzero, columns));
    count += __builtin_popcount(nonzero);
  }
#endif
  for (; d < n; ++d) {
    value[count] = x[d];
    index[count] = d;
    count += x[d] != 0;
  }
  s.count[m] = count;
}

// Columns [begin, end) of x to lists of their nonzeros, in the order of the rows.
void list_columns(const Nonzeros& s, int begin, int end) {
  for (int k = begin; k < end; ++k) s.column_count[k] = 0;
  for (int m = 0; m < s.rows; ++m) {
    const int32_t* index = s.index + m * s.ld;
    const float* value = s.value + m * s.ld;
    for (int i = 0; i < s.count[m]; ++i) {
      int k = index[i];
      if (k < begin || k >= end) continue;
      long to = k * s.column_ld + s.column_count[k]++;
      s.column_index[to] = m;
      s.column_value[to] = value[i];
    }
  }
}

// sum[p] += sum_i value[i] * b[index[i] * row + p * next : + panel], in order of i while index[i] < bound; returns i
template <int panels>
int sum_strip(const int32_t* index, const float* value, int i, int count, int bound, const float* b, long row,
              long next, float* sum, long sum_next) {
  V acc[panels][vectors];
#pragma GCC unroll 8
  for (int p = 0; p < panels; ++p) {
    acc[p][0] = load(sum + p * sum_next);
    acc[p][1] = load(sum + p * sum_next + W);
  }
  for (; i < count && index[i] < bound; ++i) {
    const float* from = b + index[i] * row;
    V v = splat(value[i]);
#pragma GCC unroll 8
    for (int p = 0; p < panels; ++p) {
      acc[p][0] += v * load(from + p * next);
      acc[p][1] += v * load(from + p * next + W);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < panels; ++p) {
    store(sum + p * sum_next, acc[p][0]);
    store(sum + p * sum_next + W, acc[p][1]);
  }
  return i;
}

typedef int (*Strip)(const int32_t*, const float*, int, int, int, const float*, long, long, float*, long);
constexpr Strip strips[strip] = {sum_strip<1>, sum_strip<2>, sum_strip<3>, sum_strip<4>};

int sparse_affine_tasks(const Affine& g) { return ceil_div(g.panels, strip) * ceil_div(g.rows, sparse_rows); }

template <Activation activation>
void sparse_affine(const Affine& g, int begin, int end) {
  const Nonzeros& s = *g.nonzeros;
  const int blocks = ceil_div(g.rows, sparse_rows);
  alignas(64) float sums[sparse_rows][strip * panel];
  for (int task = begin; task < end; ++task) {
    int p = task / blocks * strip, panels = g.panels - p < strip ? g.panels - p : strip;
    Part r = part(g.rows, blocks, task % blocks);
    int next[sparse_rows] = {};
    __builtin_memset(sums, 0, sizeof sums);
    for (int k = 0; k < g.depth; k += sparse_depth)
      for (int m = r.begin; m < r.end; ++m)
        next[m - r.begin] =
            strips[panels - 1](s.index + m * s.ld, s.value + m * s.ld, next[m - r.begin], s.count[m], k + sparse_depth,
                               g.b + p * g.b_rows * panel, panel, g.b_rows * panel, sums[m - r.begin], panel);
    for (int m = r.begin; m < r.end; ++m)
      for (int i = 0; i < panels; ++i) finish_tile<activation>(g, sums[m - r.begin] + i * panel, m, 1, (p + i) * panel);
  }
}

int sparse_weight_tasks(const WeightGradient& g) {
  return ceil_div(g.panels, strip) * ceil_div(g.fan_in, sparse_columns);
}

// Rows of W that no x of the minibatch touches are left alone where a gradient of zero changes nothing.
void sparse_weight_gradient(const WeightGradient& g, int begin, int end) {
  const Nonzeros& s = *g.nonzeros;
  const bool skip = (g.update.rule == Rule::adagrad || g.update.rule == Rule::hold) && g.update.decay == 0;
  const int blocks = ceil_div(g.fan_in, sparse_columns);
  alignas(64) float dw[strip][sparse_columns * panel];
  for (int task = begin; task < end; ++task) {
    int p = task / blocks * strip, panels = g.panels - p < strip ? g.panels - p : strip;
    int first = task % blocks * sparse_columns;
    int last = first + sparse_columns < g.fan_in ? first + sparse_columns : g.fan_in;
    __builtin_memset(dw, 0, sizeof dw);
    for (int k = first; k < last; ++k) {
      int run = k;  // rows [run, k) of W are updated together
      for (; k < last && (s.column_count[k] || !skip); ++k)
        strips[panels - 1](s.column_index + k * s.column_ld, s.column_value + k * s.column_ld, 0, s.column_count[k],
                           s.rows, g.dy + p * panel, g.dy_ld, panel, dw[0] + (k - first) * panel,
                           sparse_columns * panel);
      for (int i = 0; i < panels && run < k; ++i) {
        long at = (static_cast<long>(p + i) * g.fan_in + run) * panel;
        update(g.update, g.w + at, g.ws[0] + at, g.ws[1] ? g.ws[1] + at : nullptr, dw[i] + (run - first) * panel,
               static_cast<long>(k - run) * panel);
      }
    }
    if (first == 0)
      for (int i = 0; i < panels; ++i) bias_gradient(g, p + i);
  }
}

// The two products, from nonzeros where the caller found few.

int affine_tasks(const Affine& g) { return g.nonzeros ? sparse_affine_tasks(g) : dense_affine_tasks(g); }

template <Activation activation>
void affine_as(const Affine& g, int begin, int end) {
  g.nonzeros ? sparse_affine<activation>(g, begin, end) : dense_affine<activation>(g, begin, end);
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

int weight_tasks(const WeightGradient& g) { return g.nonzeros ? sparse_weight_tasks(g) : dense_weight_tasks(g); }

void weight_gradient(const WeightGradient& g, int begin, int end) {
  g.nonzeros ? sparse_weight_gradient(g, begin, end) : dense_weight_gradient(g, begin, end);
}
