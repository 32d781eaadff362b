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
// Deeper networks have the plain layers of dense.cu between them. The products of sample_rows and sample_backward are
// too narrow for tiles: a block takes ROWS rows of the minibatch through all that its launch does, and multiplies, in
// every precision by FFMA, operands rounded as tiles would round them. Their sums have an order of their own, which
// depends on the widths alone.
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
template <int BM, int BN, int THREADS>
DEVICE void first_layer_tile(const FirstLayer& args, float* shared) {
  if (forward_is_over(args.loop)) return;
  typedef Product<BM, BN, THREADS, true, false> TileProduct;
  const Place place = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  const int i0 = place.i, j0 = place.j;
  const int n = args.fan_in, ld = byte_row(n);
  const int rows = args.rows - i0 < BM ? args.rows - i0 : BM;
  const i64 first_row = args.loop->step * args.rows + i0;
  const i64 *index = args.index + first_row, *numbers = args.numbers + first_row;
  u8* bytes = reinterpret_cast<u8*>(shared + TileProduct::STAGES * TileProduct::B::floats);

  // What lies behind a row's end meets zeros of W, and rows behind the last are not stored.
  if ((reinterpret_cast<u64>(args.data) | static_cast<u64>(n)) % 16 == 0) {
    const int groups = n / 16;
    for (int e = threadIdx.x; e < rows * groups; e += THREADS) {
      const int i = e / groups, d = e % groups * 16;
      copy_async(reinterpret_cast<float*>(bytes + i * ld + d),
                 reinterpret_cast<const float*>(args.data + index[i] * n + d), true);
    }
  } else {
    for (int e = threadIdx.x; e < rows * n; e += THREADS)
      bytes[e / n * ld + e % n] = args.data[index[e / n] * n + e % n];
  }
  commit_copies();

  float scale = args.scale;
  if (args.binarize != BINARIZE_NONE) {
    wait_copies<0>();
    block_barrier();
    const u64 step = args.loop->first + args.loop->step;
    for (int e = threadIdx.x; e < rows * n; e += THREADS) {
      const int i = e / n, d = e % n;
      u8& byte = bytes[i * ld + d];
      byte = binarized_pixel(args.binarize, args.seed, step, numbers[i], i0 + i, n, d, byte * scale) != 0.0f;
    }
    scale = 1.0f;
  }

  TileProduct product;
  product.run(shared, {bytes, ld, scale}, {args.w.p, args.w.ld, args.fan_out}, n, j0);  // begins with a barrier
  const float* b = args.w.p + n * args.w.ld;
  product.each([&](int i, int j, float c) {
    if (i >= rows || j0 + j >= args.fan_out) return;
    args.y.p[(i0 + i) * args.y.ld + j0 + j] = rounded(activate(args.activation, c + b[j0 + j]));
  });

  const int sharers = (args.fan_out + BN - 1) / BN, share = (n + sharers - 1) / sharers, first = j0 / BN * share;
  const int columns = n - first < share ? n - first : share;
  for (int e = threadIdx.x; e < rows * columns; e += THREADS) {
    const int i = e / columns, d = first + e % columns;
    args.x.p[(i0 + i) * args.x.ld + d] = bytes[i * ld + d] * scale;
  }
}
KERNEL(first_layer_small, 128, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<SMALL>(args, shared);
}
KERNEL(first_layer_large, 256, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<LARGE>(args, shared);
}

constexpr int ROWS = 2;
constexpr int ROW_THREADS = 512;
constexpr int BATCH = 16;  // weights that a thread asks for before it waits: memory answers them in one round

struct SampleRows {
  Matrix h, w_heads, heads, z, w, y;  // h (M, H), heads (M, 2 J), z (R, J), y (R, fan_out)
  float *eps, *kl;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;  // sampled: kl of each draw, as in latent.cu
  u64 seed;
  const Loop* loop;
};

// Grid: one block per ROWS rows of the minibatch. Shared memory: h [ROWS][H], parts of the heads [slices][ROWS][2 J],
// heads [ROWS][2 J], z [L][ROWS][J].
KERNEL(sample_rows, ROW_THREADS, SampleRows) {
  SHARED_FLOATS(h);
  if (forward_is_over(args.loop)) return;
  const int m0 = blockIdx.x * ROWS, n = 2 * args.latent_dim, slices = ROW_THREADS / n, thread = threadIdx.x;
  float *parts = h + ROWS * args.hidden, *heads = parts + slices * ROWS * n, *z = heads + ROWS * n;
  for (int e = thread; e < ROWS * args.hidden; e += ROW_THREADS) {
    const int m = m0 + e / args.hidden;
    h[e] = m < args.rows ? args.h.p[m * args.h.ld + e % args.hidden] : 0.0f;
  }
  block_barrier();

  // a thread sums one slice of H for one column of the heads
  if (thread < slices * n) {
    const int column = thread % n, slice = thread / n, length = (args.hidden + slices - 1) / slices;
    const int end = (slice + 1) * length < args.hidden ? (slice + 1) * length : args.hidden;
    float sum[ROWS] = {};
    for (int k0 = slice * length; k0 < end; k0 += BATCH) {
      float w[BATCH];
      UNROLL
      for (int u = 0; u < BATCH; ++u) w[u] = k0 + u < end ? args.w_heads.p[(k0 + u) * args.w_heads.ld + column] : 0.0f;
      UNROLL
      for (int u = 0; u < BATCH; ++u) {
        const int k = k0 + u < end ? k0 + u : k0;
        UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r] = multiply_add(h[r * args.hidden + k], rounded(w[u]), sum[r]);
      }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) parts[(slice * ROWS + r) * n + column] = sum[r];
  }
  block_barrier();
  for (int e = thread; e < ROWS * n; e += ROW_THREADS) {
    float sum = 0.0f;
    for (int slice = 0; slice < slices; ++slice) sum += parts[slice * ROWS * n + e];
    heads[e] = sum + args.w_heads.p[args.hidden * args.w_heads.ld + e % n];
    if (m0 + e / n < args.rows) args.heads.p[(m0 + e / n) * args.heads.ld + e % n] = heads[e];
  }
  block_barrier();

  const int row = thread / 32;  // of this warp
  if (row < ROWS && m0 + row < args.rows) {
    const float *mu = heads + row * n, *logvar = mu + args.latent_dim;
    const u64 step = args.loop->first + args.loop->step;
    float twice_kl = 0.0f;
    for (int j = thread % 32; j < args.latent_dim; j += 32) {
      const float sd = expf(0.5f * logvar[j]);
      twice_kl += mu[j] * mu[j] + exp_minus_1_minus(logvar[j], expf(logvar[j]));
      for (int l = 0; l < args.draws; ++l) {
        const i64 r = static_cast<i64>(l) * args.rows + m0 + row, element = r * args.latent_dim + j;
        const float eps = normal_at(args.seed, step, STREAM_LATENT, element), sample = mu[j] + sd * eps;
        args.eps[element] = eps;
        args.z.p[r * args.z.ld + j] = sample;
        z[(l * ROWS + row) * args.latent_dim + j] = rounded(sample);
      }
    }
    twice_kl = warp_sum(twice_kl);
    if (thread % 32 == 0 && !args.sampled) args.kl[m0 + row] = 0.5f * twice_kl;
    for (int l = 0; args.sampled && l < args.draws; ++l) {
      const i64 r = static_cast<i64>(l) * args.rows + m0 + row;
      float twice = 0.0f;
      for (int j = thread % 32; j < args.latent_dim; j += 32) {  // what this thread has written
        const float z_exact = args.z.p[r * args.z.ld + j], eps = args.eps[r * args.latent_dim + j];
        twice += z_exact * z_exact - eps * eps - logvar[j];
      }
      twice = warp_sum(twice);
      if (thread % 32 == 0) args.kl[r] = 0.5f * twice;
    }
  }
  block_barrier();

  for (int e = thread; e < args.draws * args.fan_out; e += ROW_THREADS) {
    const int l = e / args.fan_out, column = e % args.fan_out;
    float sum[ROWS] = {};
    for (int j0 = 0; j0 < args.latent_dim; j0 += BATCH) {
      float w[BATCH];
      UNROLL
      for (int u = 0; u < BATCH; ++u) w[u] = j0 + u < args.latent_dim ? args.w.p[(j0 + u) * args.w.ld + column] : 0.0f;
      UNROLL
      for (int u = 0; u < BATCH; ++u) {
        const int j = j0 + u < args.latent_dim ? j0 + u : j0;
        UNROLL
        for (int r = 0; r < ROWS; ++r)
          sum[r] = multiply_add(z[(l * ROWS + r) * args.latent_dim + j], rounded(w[u]), sum[r]);
      }
    }
    const float b = args.w.p[args.latent_dim * args.w.ld + column];
    UNROLL
    for (int r = 0; r < ROWS; ++r)
      if (m0 + r < args.rows)
        args.y.p[(static_cast<i64>(l) * args.rows + m0 + r) * args.y.ld + column] =
            rounded(activate(args.activation, sum[r] + b));
  }
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
template <int BM, int BN, int THREADS, bool GAUSSIAN>
DEVICE void output_layer_tile(const OutputLayer& args, float* shared) {
  if (forward_is_over(args.loop)) return;
  const int n = args.density.data_dim;
  const Place place = tile_place<BM, BN>(blockIdx.x, n);
  const int i0 = place.i, j0 = place.j;
  const float* b = args.w.p + args.fan_in * args.w.ld;
  const Operand h = {args.h.p, args.h.ld, args.rows};
  auto nothing = [](const auto&, const auto&) {};
  Product<BM, BN, THREADS, true, false> first, second;
  first.run(shared, h, {args.w.p, args.w.ld, n}, args.fan_in, i0, j0, nothing);
  block_barrier();
  if constexpr (GAUSSIAN) {
    second.run(shared, h, {args.w.p + n, args.w.ld, n}, args.fan_in, i0, j0, nothing);
    block_barrier();
  }

  // terms of log p(x|z) come to shared memory, where each row is summed by THREADS / BM threads
  constexpr int ld = BN + 1, sharers = THREADS / BM;
  first.each(GAUSSIAN ? second : first, [&](int i, int j, float a, float s) {
    const int r = i0 + i, d = j0 + j;
    float term = 0.0f;
    if (r < args.rows && d < n) {
      const float x = args.x.p[r % args.x_rows * args.x.ld + d];
      const Point p = GAUSSIAN ? gaussian(args.density, x, a + b[d], s + b[n + d]) : bernoulli(x, a + b[d]);
      args.dout.p[r * args.dout.ld + d] = args.scale * p.dfirst;
      if (GAUSSIAN) args.dout.p[r * args.dout.ld + n + d] = args.scale * p.dsecond;
      term = p.log_px;
    }
    shared[i * ld + j] = term;
  });
  block_barrier();
  const int i = threadIdx.x / sharers, part = threadIdx.x % sharers;
  float sum = 0.0f;
  for (int j = part; j < BN; j += sharers) sum += shared[i * ld + j];
  for (int distance = sharers / 2; distance; distance /= 2) sum += shuffle_xor(sum, distance);
  if (part == 0 && i0 + i < args.rows) args.log_px[static_cast<i64>(i0 + i) * args.column_tiles + j0 / BN] = sum;
}
KERNEL(bernoulli_layer_small, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SMALL, false>(args, shared);
}
KERNEL(bernoulli_layer_large, 256, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<LARGE, false>(args, shared);
}
KERNEL(gaussian_layer_small, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SMALL, true>(args, shared);
}
KERNEL(gaussian_layer_large, 256, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<LARGE, true>(args, shared);
}

struct OutputBackward {
  InputGradient gradient;  // its loop is null: whether the step is completed is being decided
  Statistics statistics;
};

// Grid: the tiles of dh, and one block behind them for the statistics.
template <int BM, int BN, int THREADS>
DEVICE void output_backward_tile(const OutputBackward& args, float* shared) {
  if (blockIdx.x + 1 == gridDim.x) return sum_statistics<THREADS>(args.statistics, shared);
  input_gradient_tile<BM, BN, THREADS>(args.gradient, blockIdx.x, shared);
}
KERNEL(output_backward_small, 128, OutputBackward) {
  SHARED_FLOATS(shared);
  output_backward_tile<SMALL>(args, shared);
}
KERNEL(output_backward_large, 256, OutputBackward) {
  SHARED_FLOATS(shared);
  output_backward_tile<LARGE>(args, shared);
}

struct SampleBackward {
  Matrix dy, w, heads, dheads, w_heads, h, dh;  // dy (R, fan_out), heads and dheads (M, 2 J), h and dh (M, H)
  const float* eps;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;
  Loop* loop;
};

// Grid: one block per ROWS rows of the minibatch. Shared memory: dz [L][ROWS][J], dheads [ROWS][2 J].
KERNEL(sample_backward, ROW_THREADS, SampleBackward) {
  SHARED_FLOATS(dz);
  if (backward_is_over(args.loop)) return;
  if (blockIdx.x == 0 && threadIdx.x == 0) args.loop->step += 1;
  const int m0 = blockIdx.x * ROWS, n = args.latent_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* dheads = dz + args.draws * ROWS * n;

  // a warp sums one column of dz
  constexpr int half = BATCH / 2;
  for (int e = warp; e < args.draws * n; e += ROW_THREADS / 32) {
    const int l = e / n, j = e % n;
    float sum[ROWS] = {};
    for (int k0 = lane; k0 < args.fan_out; k0 += 32 * half) {
      float w[half], dy[ROWS][half];
      UNROLL
      for (int u = 0; u < half; ++u) {
        const int k = k0 + 32 * u;
        w[u] = k < args.fan_out ? args.w.p[j * args.w.ld + k] : 0.0f;
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const i64 row = static_cast<i64>(l) * args.rows + m0 + r;
          dy[r][u] = k < args.fan_out && m0 + r < args.rows ? args.dy.p[row * args.dy.ld + k] : 0.0f;
        }
      }
      UNROLL
      for (int u = 0; u < half; ++u) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r] = multiply_add(rounded(dy[r][u]), rounded(w[u]), sum[r]);
      }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
      sum[r] = warp_sum(sum[r]);
      if (lane == 0) dz[(l * ROWS + r) * n + j] = sum[r];
    }
  }
  block_barrier();

  for (int e = threadIdx.x; e < ROWS * n; e += ROW_THREADS) {
    const int r = e / n, j = e % n, m = m0 + r;
    float dmu = 0.0f, dlogvar = 0.0f;
    if (m < args.rows) {
      const float kl_scale = args.loop->now.kl_scale, *head = args.heads.p + m * args.heads.ld;
      const float v = head[n + j], sd = expf(0.5f * v);
      float dz_sum = 0.0f, dz_eps = 0.0f;
      for (int l = 0; l < args.draws; ++l) {
        const float eps = args.eps[(static_cast<i64>(l) * args.rows + m) * n + j];
        float d = dz[(l * ROWS + r) * n + j];
        if (args.sampled) d -= kl_scale * (head[j] + sd * eps);
        dz_sum += d;
        dz_eps += d * eps;
      }
      dmu = args.sampled ? dz_sum : dz_sum - kl_scale * head[j];
      dlogvar = 0.5f * (sd * dz_eps - kl_scale * (args.sampled ? static_cast<float>(-args.draws)
                                                               : exp_minus_1_minus(v, expf(v)) + v));
      args.dheads.p[m * args.dheads.ld + j] = dmu;
      args.dheads.p[m * args.dheads.ld + n + j] = dlogvar;
    }
    dheads[r * 2 * n + j] = rounded(dmu);
    dheads[r * 2 * n + n + j] = rounded(dlogvar);
  }
  block_barrier();

  // four lanes sum one column of dh
  constexpr int lanes = 4;
  for (int k0 = warp * (32 / lanes); k0 < args.hidden; k0 += ROW_THREADS / lanes) {
    const int k = k0 + lane / lanes, part = lane % lanes;
    float sum[ROWS] = {};
    for (int c0 = part; c0 < 2 * n; c0 += lanes * BATCH) {
      float w[BATCH];
      UNROLL
      for (int u = 0; u < BATCH; ++u) {
        const int c = c0 + lanes * u;
        w[u] = k < args.hidden && c < 2 * n ? args.w_heads.p[k * args.w_heads.ld + c] : 0.0f;
      }
      UNROLL
      for (int u = 0; u < BATCH; ++u) {
        const int c = c0 + lanes * u < 2 * n ? c0 + lanes * u : c0;
        UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r] = multiply_add(dheads[r * 2 * n + c], rounded(w[u]), sum[r]);
      }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
      for (int distance = lanes / 2; distance; distance /= 2) sum[r] += shuffle_xor(sum[r], distance);
      if (part == r && k < args.hidden && m0 + r < args.rows)
        args.dh.p[(m0 + r) * args.dh.ld + k] = sum[r] * slope(args.activation, args.h.p[(m0 + r) * args.h.ld + k]);
    }
  }
}
