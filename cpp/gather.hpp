// Rows of the dataset to float32: x[m] = data[index[m]] * scale, then binarised. Storage dtypes stay as they are.
#pragma once

template <typename T>
void gather_dense(const Gather& g, float* x, int64_t row) {
  const T* __restrict from = static_cast<const T*>(g.data.values) + row * g.data.data_dim;
  float* __restrict to = x;
  const float scale = g.scale;
  for (int d = 0, n = g.data.data_dim; d < n; ++d) to[d] = static_cast<float>(from[d]) * scale;
}

template <typename T, typename I>
void gather_csr(const Gather& g, float* x, int64_t row) {
  const I* indptr = static_cast<const I*>(g.data.indptr);
  const I* indices = static_cast<const I*>(g.data.indices);
  const T* values = static_cast<const T*>(g.data.values);
  __builtin_memset(x, 0, sizeof(float) * g.data.data_dim);
  for (I i = indptr[row]; i < indptr[row + 1]; ++i) x[indices[i]] = static_cast<float>(values[i]) * g.scale;
}

template <typename T>
void gather_row(const Gather& g, float* x, int64_t row) {
  if (!g.data.indptr) return gather_dense<T>(g, x, row);
  g.data.wide_indices ? gather_csr<T, int64_t>(g, x, row) : gather_csr<T, int32_t>(g, x, row);
}

// Rows lie anywhere in memory: the beginning of a dense row is asked for while those before it are read.
constexpr int rows_ahead = 8;

inline void fetch_row(const Gather& g, int64_t row) {
  const long itemsize = g.data.dtype == Dtype::u8 ? 1 : g.data.dtype == Dtype::f32 ? 4 : 8;
  const long bytes = itemsize * g.data.data_dim;
  const char* from = static_cast<const char*>(g.data.values) + row * bytes;
  for (long i = 0; i < bytes && i < 1024; i += 64) __builtin_prefetch(from + i);
}

void gather(const Gather& g, int begin, int end) {
  for (int m = begin, fetched = begin; m < end; ++m) {
    for (; !g.data.indptr && fetched < end && fetched <= m + rows_ahead; ++fetched) fetch_row(g, g.index[fetched]);
    float* x = g.x + m * g.x_ld;
    switch (g.data.dtype) {
      case Dtype::u8: gather_row<uint8_t>(g, x, g.index[m]); break;
      case Dtype::f32: gather_row<float>(g, x, g.index[m]); break;
      case Dtype::f64: gather_row<double>(g, x, g.index[m]); break;
    }
    int n = g.data.data_dim;
    switch (g.binarize) {
      case Binarize::none: break;
      case Binarize::dynamic: binarize_row(x, n, g.seed, g.step, stream_binarize, static_cast<long>(m) * n); break;
      case Binarize::fixed: binarize_row(x, n, g.seed, g.index[m], stream_binarize_fixed, 0); break;
      case Binarize::shared: binarize_row(x, n, g.seed, 0, stream_binarize_fixed, 0); break;
    }
  }
}
