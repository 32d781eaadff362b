// Rows of the dataset to float32: x[m] = data[index[m]] * scale, then binarised. Storage dtypes stay as they are.
//
// Grid: one block per row of the minibatch.
#include "philox.cuh"

enum Dtype { DTYPE_U8, DTYPE_F32, DTYPE_F64 };

struct Rows {                             // a dataset, dense or CSR
  const void *values, *indices, *indptr;  // indptr null when dense
  int dtype, wide_indices, data_dim;      // wide: int64 instead of int32
};

struct Gather {
  Rows data;
  const i64 *index, *numbers;  // rows in `data`, and their numbers, which key the noise; of the loop's first step
  Matrix x;
  u64 seed, step;
  float scale;
  int binarize, rows;
  const Loop* loop;  // null outside the fused loop
};

DEVICE float value_at(const Rows& data, i64 i) {
  switch (data.dtype) {
    case DTYPE_U8: return static_cast<const u8*>(data.values)[i];
    case DTYPE_F32: return static_cast<const float*>(data.values)[i];
    default: return static_cast<float>(static_cast<const double*>(data.values)[i]);
  }
}
DEVICE i64 integer_at(const void* p, int wide, i64 i) {
  return wide ? static_cast<const i64*>(p)[i] : static_cast<const int*>(p)[i];
}

KERNEL(gather, 256, Gather) {
  if (forward_is_over(args.loop)) return;
  const Rows& data = args.data;
  const int m = blockIdx.x, n = data.data_dim;
  const u64 step = args.loop ? args.loop->first + args.loop->step : args.step;
  const i64 place = (args.loop ? args.loop->step * args.rows : 0) + m, row = args.index[place];
  float* x = args.x.p + m * args.x.ld;

  auto binarize = [&](auto value) {
    each_pixel(args.binarize, args.seed, step, args.numbers[place], m, n, threadIdx.x, blockDim.x,
               [&](int d, u32 word) { x[d] = below(word, value(d)); });
  };
  if (data.indptr) {
    for (int d = threadIdx.x; d < n; d += blockDim.x) x[d] = 0.0f;
    block_barrier();
    i64 last = integer_at(data.indptr, data.wide_indices, row + 1);
    for (i64 i = integer_at(data.indptr, data.wide_indices, row) + threadIdx.x; i < last; i += blockDim.x)
      x[integer_at(data.indices, data.wide_indices, i)] = value_at(data, i) * args.scale;
    if (args.binarize == BINARIZE_NONE) return;
    block_barrier();
    binarize([&](int d) { return x[d]; });
  } else if (args.binarize == BINARIZE_NONE) {
    for (int d = threadIdx.x; d < n; d += blockDim.x) x[d] = value_at(data, row * n + d) * args.scale;
  } else {
    binarize([&](int d) { return value_at(data, row * n + d) * args.scale; });
  }
}
