// Phases of the fused loop that do several operations at once. A step of the paper's network is six launches:
//
//   first_layer        x = rows of the dataset; h1 = f(x W1 + b1)
//   sample_rows        [mu | logvar] = h1 Wh + bh; z, kl; h2 = f(z W3 + b3)
//   bernoulli_layer,   out = h2 W4 + b4; log p(x|z) and dout in the epilogue
//   gaussian_layer
//   output_backward    dh2 = dout W4^T f'(h2); one block more sums the statistics
//   sample_backward    dz = dh2 W3^T; dmu, dlogvar; dh1 = [dmu | dlogvar] Wh^T f'(h1)
//   weight_gradients   of dense.cu: all dW and db with the optimizer's step
//
// Deeper networks have the plain layers of dense.cu between them. sample_rows and sample_backward are in sample.cu.
#include "dense.cuh"
#include "likelihood.cuh"
#include "philox.cuh"
#include "statistics.cuh"

struct FirstLayer {
  const u8* data;              // (N, D)
  const i64 *index, *numbers;  // as in gather.cu
  Matrix x, w, y;
  u64 seed;
  float scale;
  int binarize, rows, fan_in, fan_out, activation;
  const Loop* loop;
};

// Bytes from one row to the next in shared memory: whole stages, and 16 beyond a multiple of 128, so that the same
// columns of 8 rows lie in different banks.
DEVICE int byte_row(int n) { return ((n + DEPTH - 1) / DEPTH * DEPTH + 111) / 128 * 128 + 16; }

// Grid: the tiles of y. Each block has its rows of bytes in shared memory whole, and writes to x the
// share of their columns that falls to it.
template <int BM, int BN, int GROUP, int GROUPS>
DEVICE void first_layer_tile(const FirstLayer& args, float* shared) {
  typedef Product<BM, BN, GROUP, GROUPS, true, false> TileProduct;
  constexpr int THREADS = GROUP * GROUPS;
  const Place place = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  const int i0 = place.i, j0 = place.j;
  const int n = args.fan_in, ld = byte_row(n);
  // written by sample_backward and output_backward, behind which weight_gradients comes: no launch before writes them
  const i64 step = read_early(&args.loop->step);
  const bool over = step >= read_early(&args.loop->limit);
  const int rows = over ? 0 : args.rows - i0 < BM ? args.rows - i0 : BM;
  u8* bytes = reinterpret_cast<u8*>(shared + GROUPS * TileProduct::STAGES * TileProduct::B::floats);

  // Threads side by side have a row. What lies behind its end meets zeros of W, and rows behind the last are not
  // stored.
  constexpr int sharers = THREADS / BM;
  const int i = threadIdx.x / sharers, part = threadIdx.x % sharers;
  const i64 of_row = step * args.rows + i0 + i;
  u8* row = bytes + i * ld;
  if (i < rows) {
    const u8* from = args.data + args.index[of_row] * n;
    const u64 aligned = reinterpret_cast<u64>(args.data) | static_cast<u64>(n);
    if (aligned % 16 == 0) {
      for (int d = part * 16; d < n; d += sharers * 16) copy_bytes_async<16>(row + d, from + d);
    } else if (aligned % 4 == 0) {
      for (int d = part * 4; d < n; d += sharers * 4) copy_bytes_async<4>(row + d, from + d);
    } else {
      for (int d = part; d < n; d += sharers) row[d] = from[d];
    }
  }
  commit_copies();
  float scale = args.scale;
  if (args.binarize != BINARIZE_NONE) {
    wait_copies<0>();
    block_barrier();
    const u64 number = read_early(&args.loop->first) + step;
    if (i < rows)
      each_pixel(args.binarize, args.seed, number, args.numbers[of_row], i0 + i, n, part, sharers,
                 [&](int d, u32 word) { row[d] = below(word, row[d] * args.scale) != 0.0f; });
    scale = 1.0f;
  }
  wait_for_launch_before();
  if (over) return wait_copies<0>();

  TileProduct product;
  begin_with(product, bias_window(args.w, n, j0, args.fan_out));
  product.run(shared, {bytes, ld, scale}, {args.w.p, args.w.ld, args.fan_out}, n, j0);  // begins with a barrier
  float y[TileProduct::elements];
  take_sums(product, y);
  activate_all(args.activation, y);
  round_all(y);
  write_elements<TileProduct>(window(args.y, place, args.rows, args.fan_out), y);

  const int shares = (args.fan_out + BN - 1) / BN, share = (n + shares - 1) / shares, first = j0 / BN * share;
  const int columns = n - first < share ? n - first : share;
  for (int e = threadIdx.x; e < rows * columns; e += THREADS) {
    const int i = e / columns, d = first + e % columns;
    args.x.p[(i0 + i) * args.x.ld + d] = bytes[i * ld + d] * scale;
  }
}
AHEAD_KERNEL(first_layer_split, 128, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<SPLIT>(args, shared);
}
AHEAD_KERNEL(first_layer_large, 256, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<LARGE>(args, shared);
}

struct OutputLayer {
  Density density;
  Matrix h, w, x, dout;  // h (R, fan_in), x (M, D), dout (R, D) or (R, 2 D)
  float* log_px;         // (R, column_tiles)
  int rows, x_rows, fan_in, column_tiles;
  float scale;
  const Loop* loop;
};

// Grid: the tiles of D columns. A Gaussian's two heads are D columns apart, and D a multiple of 4.
template <int BM, int BN, int GROUP, int GROUPS, bool GAUSSIAN>
DEVICE void output_layer_tile(const OutputLayer& args, float* shared) {
  typedef Product<BM, BN, GROUP, GROUPS, true, false> TileProduct;
  constexpr int N = TileProduct::elements;
  const int n = args.density.data_dim;
  const Place corner = tile_place<BM, BN>(blockIdx.x, n);
  const int i0 = corner.i, j0 = corner.j;
  const Operand h = {args.h.p, args.h.ld, args.rows};
  auto nothing = [](const auto&) {};
  float x[N], a[N], s[N];
  auto read_x = [&] {
    const Window from = {args.x.p + j0, static_cast<int>(args.x.ld), args.rows - i0, n - j0};
    if (args.x_rows == args.rows)  // no quotient for each row then
      read_elements<TileProduct>(from, x, 0, [&](int i) { return i0 + i; });
    else
      read_elements<TileProduct>(from, x, 0, [&](int i) { return (i0 + i) % args.x_rows; });
  };
  constexpr bool x_ahead = TileProduct::READ_AHEAD && !GAUSSIAN;  // two products leave no room
  if (x_ahead) read_x();
  TileProduct first, second;
  begin_with(first, bias_window(args.w, args.fan_in, j0, n));
  if (!first.run(
          shared, h, {args.w.p, args.w.ld, n}, args.fan_in, i0, j0, EARLY_B, [&] { return forward_goes_on(args.loop); },
          nothing))
    return;
  block_barrier();
  if constexpr (GAUSSIAN) {
    begin_with(second, bias_window({args.w.p + n, args.w.ld}, args.fan_in, j0, n));
    second.run(shared, h, {args.w.p + n, args.w.ld, n}, args.fan_in, i0, j0, EARLY_B, [] { return true; }, nothing);
    block_barrier();
  }
  if (!x_ahead) read_x();
  take_sums(first, a);
  if (GAUSSIAN) take_sums(second, s);
  // x becomes the terms of log p(x|z), a and s their derivatives
  with_constant<2>(args.density.identity_mean, [&](auto identity_mean) {
    Density density = args.density;
    density.identity_mean = identity_mean;
    UNROLL
    for (int e = 0; e < N; ++e) {
      const Point p = GAUSSIAN ? gaussian(density, x[e], a[e], s[e]) : bernoulli(x[e], a[e]);
      x[e] = p.log_px, a[e] = args.scale * p.dfirst, s[e] = args.scale * p.dsecond;
    }
  });
  write_elements<TileProduct>(window(args.dout, corner, args.rows, n), a);
  if (GAUSSIAN) write_elements<TileProduct>(window({args.dout.p + n, args.dout.ld}, corner, args.rows, n), s);

  // terms come to shared memory, where each row is summed by as many threads as there are
  constexpr int ld = BN + 1, sharers = GROUP * GROUPS / BM;
  UNROLL
  for (int e = 0; e < N; ++e) {
    const Place at = TileProduct::place_of(e);
    shared[at.i * ld + at.j] = i0 + at.i < args.rows && j0 + at.j < n ? x[e] : 0.0f;
  }
  block_barrier();
  const int i = threadIdx.x / sharers, part = threadIdx.x % sharers;
  float sum = 0.0f;
  for (int j = part; j < BN; j += sharers) sum += shared[i * ld + j];
  for (int distance = sharers / 2; distance; distance /= 2) sum += shuffle_xor(sum, distance);
  if (part == 0 && i0 + i < args.rows) args.log_px[static_cast<i64>(i0 + i) * args.column_tiles + j0 / BN] = sum;
}
AHEAD_KERNEL(bernoulli_layer_split, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SPLIT, false>(args, shared);
}
AHEAD_KERNEL(bernoulli_layer_large, 256, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<LARGE, false>(args, shared);
}
AHEAD_KERNEL(gaussian_layer_split, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SPLIT, true>(args, shared);
}
AHEAD_KERNEL(gaussian_layer_large, 256, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<LARGE, true>(args, shared);
}

struct OutputBackward {
  InputGradient gradient;  // its loop is null: whether the step is completed is being decided
  Statistics statistics;
};

// Grid: the tiles of dh, and one block behind them for the statistics.
template <int BM, int BN, int GROUP, int GROUPS>
DEVICE void output_backward_tile(const OutputBackward& args, float* shared) {
  if (blockIdx.x + 1 == gridDim.x) return sum_statistics<GROUP * GROUPS>(args.statistics, shared);
  input_gradient_tile<BM, BN, GROUP, GROUPS>(args.gradient, blockIdx.x, shared);
}
AHEAD_KERNEL(output_backward_split, 128, OutputBackward) {
  SHARED_FLOATS(shared);
  output_backward_tile<SPLIT>(args, shared);
}
AHEAD_KERNEL(output_backward_large, 256, OutputBackward) {
  SHARED_FLOATS(shared);
  output_backward_tile<LARGE>(args, shared);
}
