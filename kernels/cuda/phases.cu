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
  const i64 *index = args.index + step * args.rows + i0, *numbers = args.numbers + step * args.rows + i0;
  u8* bytes = reinterpret_cast<u8*>(shared + GROUPS * TileProduct::STAGES * TileProduct::B::floats);

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
  wait_for_launch_before();
  if (over) return wait_copies<0>();

  float scale = args.scale;
  if (args.binarize != BINARIZE_NONE) {
    wait_copies<0>();
    block_barrier();
    const u64 number = args.loop->first + step;
    for (int e = threadIdx.x; e < rows * n; e += THREADS) {
      const int i = e / n, d = e % n;
      u8& byte = bytes[i * ld + d];
      byte = binarized_pixel(args.binarize, args.seed, number, numbers[i], i0 + i, n, d, byte * scale) != 0.0f;
    }
    scale = 1.0f;
  }

  TileProduct product;
  begin_with(product, bias_window(args.w, n, j0, args.fan_out));
  product.run(shared, {bytes, ld, scale}, {args.w.p, args.w.ld, args.fan_out}, n, j0);  // begins with a barrier
  float y[TileProduct::elements];
  take_sums(product, y);
  activate_all(args.activation, y);
  round_all(y);
  write_elements<TileProduct>(window(args.y, place, args.rows, args.fan_out), y);

  const int sharers = (args.fan_out + BN - 1) / BN, share = (n + sharers - 1) / sharers, first = j0 / BN * share;
  const int columns = n - first < share ? n - first : share;
  for (int e = threadIdx.x; e < rows * columns; e += THREADS) {
    const int i = e / columns, d = first + e % columns;
    args.x.p[(i0 + i) * args.x.ld + d] = bytes[i * ld + d] * scale;
  }
}
AHEAD_KERNEL(first_layer_split, 256, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<SPLIT_BYTES>(args, shared);
}
AHEAD_KERNEL(first_layer_large, 256, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<LARGE>(args, shared);
}

constexpr int ROWS = 2;
constexpr int ROW_THREADS = 512;

// sum += factor * w, of four columns; sum += d . w. Weights are rounded as tiles would round them.
DEVICE void add_multiple(float4& sum, float factor, const float4& w) {
  sum.x = multiply_add(factor, rounded(w.x), sum.x);
  sum.y = multiply_add(factor, rounded(w.y), sum.y);
  sum.z = multiply_add(factor, rounded(w.z), sum.z);
  sum.w = multiply_add(factor, rounded(w.w), sum.w);
}
DEVICE void add_product(float& sum, const float4& d, const float4& w) {
  sum = multiply_add(d.x, rounded(w.x), sum);
  sum = multiply_add(d.y, rounded(w.y), sum);
  sum = multiply_add(d.z, rounded(w.z), sum);
  sum = multiply_add(d.w, rounded(w.w), sum);
}

struct SampleRows {
  Matrix h, w_heads, heads, z, w, y;  // h (M, H), heads (M, 2 J), z (R, J), y (R, fan_out)
  float *eps, *kl;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;  // sampled: kl of each draw, as in latent.cu
  u64 seed;
  const Loop* loop;
};

// Shared memory of sample_rows: parts of the heads [slices][ROWS][2 J, whole fours], h [ROWS][H], heads [ROWS][2 J],
// z [L][ROWS][J]. A block asks for its weights, all of them where they are not too many, while first_layer runs: their
// way takes longer than the products.
//
// Grid: one block per ROWS rows of the minibatch.
AHEAD_KERNEL(sample_rows, ROW_THREADS, SampleRows) {
  SHARED_FLOATS(parts);
  const int m0 = blockIdx.x * ROWS, n = 2 * args.latent_dim, thread = threadIdx.x;
  const int fours = (n + 3) / 4, slices = ROW_THREADS / fours;  // a thread sums one slice of H for four of the heads
  const int four = thread % fours * 4, slice = thread / fours, length = (args.hidden + slices - 1) / slices;
  const int begin = slice * length, end = slice >= slices                ? 0
                                          : begin + length < args.hidden ? begin + length
                                                                         : args.hidden;
  float *h = parts + slices * ROWS * 4 * fours, *heads = h + ROWS * args.hidden, *z = heads + ROWS * n;

  constexpr int HEADS_AHEAD = 10, ROWS_AHEAD = 20;  // as the paper's network wants
  float4 w_heads[HEADS_AHEAD];
  auto ask_heads = [&](int k0) {
    UNROLL
    for (int u = 0; u < HEADS_AHEAD; ++u)
      w_heads[u] = early_four_at(args.w_heads.p, (k0 + u) * args.w_heads.ld + four, k0 + u < end);
  };
  float w[ROWS_AHEAD], b;
  auto ask_rows = [&](int column, int j0) {
    b = read_early(args.w.p + args.latent_dim * args.w.ld + column);
    UNROLL
    for (int u = 0; u < ROWS_AHEAD; ++u)
      w[u] = early_at(args.w.p, (j0 + u) * args.w.ld + column, j0 + u < args.latent_dim);
  };
  ask_heads(begin);
  ask_rows(thread % args.fan_out, 0);
  constexpr int sharers = 4;  // threads that add up the parts of one head of one row
  const int head = thread / sharers;
  float b_head = read_early(args.w_heads.p + args.hidden * args.w_heads.ld + head % n);
  const u64 step = read_early(&args.loop->first) + read_early(&args.loop->step);
  for (int e = thread; e < args.draws * ROWS * args.latent_dim; e += ROW_THREADS) {  // noise, where z is to be
    const i64 row = static_cast<i64>(e / args.latent_dim / ROWS) * args.rows + m0 + e / args.latent_dim % ROWS;
    z[e] = normal_at(args.seed, step, STREAM_LATENT, row * args.latent_dim + e % args.latent_dim);
  }
  if (!forward_goes_on(args.loop)) return;

  for (int e = thread; e < ROWS * args.hidden; e += ROW_THREADS) {
    const int m = m0 + e / args.hidden;
    h[e] = m < args.rows ? args.h.p[m * args.h.ld + e % args.hidden] : 0.0f;
  }
  block_barrier();
  if (slice < slices) {
    float4 sum[ROWS] = {};
    for (int k0 = begin; k0 < end; k0 += HEADS_AHEAD) {
      if (k0 > begin) ask_heads(k0);
      UNROLL
      for (int u = 0; u < HEADS_AHEAD; ++u) {
        const int k = k0 + u < end ? k0 + u : k0;
        UNROLL
        for (int r = 0; r < ROWS; ++r) add_multiple(sum[r], h[r * args.hidden + k], w_heads[u]);
      }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) *reinterpret_cast<float4*>(parts + (slice * ROWS + r) * 4 * fours + four) = sum[r];
  }
  block_barrier();
  for (int e0 = 0; e0 < ROWS * n; e0 += ROW_THREADS / sharers) {
    const int e = e0 + head, r = e / n, column = e % n;
    float sum = 0.0f;
    for (int i = thread % sharers; e < ROWS * n && i < slices; i += sharers)
      sum += parts[(i * ROWS + r) * 4 * fours + column];
    for (int distance = sharers / 2; distance; distance /= 2) sum += shuffle_xor(sum, distance);
    if (e0 > 0 && e < ROWS * n) b_head = args.w_heads.p[args.hidden * args.w_heads.ld + column];
    if (e >= ROWS * n || thread % sharers) continue;
    heads[e] = sum + b_head;
    if (m0 + r < args.rows) args.heads.p[(m0 + r) * args.heads.ld + column] = heads[e];
  }
  block_barrier();

  const int row = thread / 32;  // of this warp
  if (row < ROWS && m0 + row < args.rows) {
    const float *mu = heads + row * n, *logvar = mu + args.latent_dim;
    float twice_kl = 0.0f;
    for (int j = thread % 32; j < args.latent_dim; j += 32) {
      const float sd = expf(0.5f * logvar[j]);
      twice_kl += mu[j] * mu[j] + exp_minus_1_minus(logvar[j], expf(logvar[j]));
      for (int l = 0; l < args.draws; ++l) {
        const i64 r = static_cast<i64>(l) * args.rows + m0 + row, element = r * args.latent_dim + j;
        float& place = z[(l * ROWS + row) * args.latent_dim + j];
        const float eps = place, sample = mu[j] + sd * eps;
        args.eps[element] = eps;
        args.z.p[r * args.z.ld + j] = sample;
        place = rounded(sample);
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
    for (int j0 = 0; j0 < args.latent_dim; j0 += ROWS_AHEAD) {
      if (e > thread || j0 > 0) ask_rows(column, j0);
      UNROLL
      for (int u = 0; u < ROWS_AHEAD; ++u) {
        const int j = j0 + u < args.latent_dim ? j0 + u : j0;
        UNROLL
        for (int r = 0; r < ROWS; ++r)
          sum[r] = multiply_add(z[(l * ROWS + r) * args.latent_dim + j], rounded(w[u]), sum[r]);
      }
    }
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
  if (blockIdx.x + 1 == gridDim.x) {
    wait_for_launch_before();
    return sum_statistics<GROUP * GROUPS>(args.statistics, shared);
  }
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

struct SampleBackward {
  Matrix dy, w, heads, dheads, w_heads, h, dh;  // dy (R, fan_out), heads and dheads (M, 2 J), h and dh (M, H)
  const float* eps;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;
  Loop* loop;
};

// Grid: one block per ROWS rows of the minibatch. Shared memory: dheads [ROWS][2 J, padded], dy [ROWS][fan_out, padded]
// of one draw, heads [ROWS][2 J], eps and dz [L][ROWS][J]. Weights are asked for as in sample_rows.
AHEAD_KERNEL(sample_backward, ROW_THREADS, SampleBackward) {
  SHARED_FLOATS(dheads);
  const int m0 = blockIdx.x * ROWS, n = args.latent_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int heads_ld = static_cast<int>(args.dheads.ld), dy_ld = static_cast<int>(args.dy.ld);
  float *dy = dheads + ROWS * heads_ld, *heads = dy + ROWS * dy_ld, *eps = heads + ROWS * 2 * n;
  float* dz = eps + args.draws * ROWS * n;

  // a warp sums two columns of dz: lanes side by side along fan_out
  constexpr int COLUMNS = 2, WARPS = ROW_THREADS / 32, DZ_AHEAD = 4;
  float4 w[COLUMNS][DZ_AHEAD];
  auto ask_dz = [&](int j0, int k0) {
    UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      UNROLL
      for (int u = 0; u < DZ_AHEAD; ++u) {
        const int j = j0 + c * WARPS, k = k0 + 4 * (32 * u + lane);
        w[c][u] = early_four_at(args.w.p, j * args.w.ld + k, j < n && k < args.fan_out);
      }
    }
  };
  // two lanes sum a row of dh, side by side along the heads; a block does several hundred rows at once
  constexpr int LANES = 2, STEP = ROW_THREADS / LANES, DH_ROWS = 2, DH_AHEAD = 5;
  static_assert(ROWS <= LANES, "a lane stores a row of the minibatch");
  const int dh_row = threadIdx.x / LANES, part = lane % LANES;
  float4 w_heads[DH_ROWS][DH_AHEAD];
  auto ask_dh = [&](int k0, int c0) {
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) {
      UNROLL
      for (int u = 0; u < DH_AHEAD; ++u) {
        const int k = k0 + i * STEP + dh_row, c = c0 + 4 * (LANES * u + part);
        w_heads[i][u] = early_four_at(args.w_heads.p, k * args.w_heads.ld + c, k < args.hidden && c < 2 * n);
      }
    }
  };
  ask_dz(warp, 0);
  ask_dh(0, 0);
  for (int e = threadIdx.x; e < ROWS * 2 * n; e += ROW_THREADS) {
    const int m = m0 + e / (2 * n);
    heads[e] = early_at(args.heads.p, m * args.heads.ld + e % (2 * n), m < args.rows);
  }
  for (int e = threadIdx.x; e < args.draws * ROWS * n; e += ROW_THREADS) {
    const int m = m0 + e / n % ROWS;
    const i64 row = static_cast<i64>(e / n / ROWS) * args.rows + m;
    eps[e] = early_at(args.eps, row * n + e % n, m < args.rows);
  }
  if (!backward_goes_on(args.loop)) return;
  if (blockIdx.x == 0 && threadIdx.x == 0) args.loop->step += 1;

  for (int l = 0; l < args.draws; ++l) {
    block_barrier();  // dy may still be read
    for (int e = 4 * threadIdx.x; e < ROWS * dy_ld; e += 4 * ROW_THREADS) {
      const int m = m0 + e / dy_ld;
      const i64 row = static_cast<i64>(l) * args.rows + m;
      const float4 v = early_four_at(args.dy.p, row * args.dy.ld + e % dy_ld, m < args.rows);
      *reinterpret_cast<float4*>(dy + e) = {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
    }
    block_barrier();
    for (int j0 = warp; j0 < n; j0 += COLUMNS * WARPS) {
      float sum[COLUMNS][ROWS] = {};
      for (int k0 = 0; k0 < args.fan_out; k0 += 4 * 32 * DZ_AHEAD) {
        if (l > 0 || j0 > warp || k0 > 0) ask_dz(j0, k0);
        UNROLL
        for (int u = 0; u < DZ_AHEAD; ++u) {
          const int k = k0 + 4 * (32 * u + lane);
          if (k >= args.fan_out) continue;
          UNROLL
          for (int r = 0; r < ROWS; ++r) {
            const float4 d = *reinterpret_cast<const float4*>(dy + r * dy_ld + k);
            UNROLL
            for (int c = 0; c < COLUMNS; ++c) add_product(sum[c][r], d, w[c][u]);
          }
        }
      }
      UNROLL
      for (int c = 0; c < COLUMNS; ++c) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const int j = j0 + c * WARPS;
          const float total = warp_sum(sum[c][r]);
          if (lane == 0 && j < n) dz[(l * ROWS + r) * n + j] = total;
        }
      }
    }
  }
  block_barrier();

  for (int e = threadIdx.x; e < ROWS * heads_ld; e += ROW_THREADS) dheads[e] = 0.0f;
  block_barrier();
  for (int e = threadIdx.x; e < ROWS * n; e += ROW_THREADS) {
    const int r = e / n, j = e % n, m = m0 + r;
    if (m >= args.rows) continue;
    const float kl_scale = args.loop->now.kl_scale, mu = heads[r * 2 * n + j], v = heads[r * 2 * n + n + j];
    const float sd = expf(0.5f * v);
    float dz_sum = 0.0f, dz_eps = 0.0f;
    for (int l = 0; l < args.draws; ++l) {
      const float noise = eps[(l * ROWS + r) * n + j];
      float d = dz[(l * ROWS + r) * n + j];
      if (args.sampled) d -= kl_scale * (mu + sd * noise);
      dz_sum += d;
      dz_eps += d * noise;
    }
    const float dmu = args.sampled ? dz_sum : dz_sum - kl_scale * mu;
    const float of_kl = args.sampled ? static_cast<float>(-args.draws) : exp_minus_1_minus(v, expf(v)) + v;
    const float dlogvar = 0.5f * (sd * dz_eps - kl_scale * of_kl);
    args.dheads.p[m * args.dheads.ld + j] = dmu;
    args.dheads.p[m * args.dheads.ld + n + j] = dlogvar;
    dheads[r * heads_ld + j] = rounded(dmu);
    dheads[r * heads_ld + n + j] = rounded(dlogvar);
  }
  block_barrier();

  for (int k0 = 0; k0 < args.hidden; k0 += DH_ROWS * STEP) {
    float sum[DH_ROWS][ROWS] = {};
    for (int c0 = 0; c0 < 2 * n; c0 += 4 * LANES * DH_AHEAD) {
      if (k0 > 0 || c0 > 0) ask_dh(k0, c0);
      UNROLL
      for (int u = 0; u < DH_AHEAD; ++u) {
        const int c = c0 + 4 * (LANES * u + part);
        if (c >= 2 * n) continue;
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const float4 d = *reinterpret_cast<const float4*>(dheads + r * heads_ld + c);
          UNROLL
          for (int i = 0; i < DH_ROWS; ++i) add_product(sum[i][r], d, w_heads[i][u]);
        }
      }
    }
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) {
      const int k = k0 + i * STEP + dh_row;
      UNROLL
      for (int r = 0; r < ROWS; ++r) {
        for (int distance = LANES / 2; distance; distance /= 2) sum[i][r] += shuffle_xor(sum[i][r], distance);
        if (part == r && k < args.hidden && m0 + r < args.rows)
          args.dh.p[(m0 + r) * args.dh.ld + k] = sum[i][r] * slope(args.activation, args.h.p[(m0 + r) * args.h.ld + k]);
      }
    }
  }
}
