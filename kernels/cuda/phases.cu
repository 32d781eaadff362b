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
  typedef Product<BM, BN, THREADS, true, false> TileProduct;
  const Place place = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  const int i0 = place.i, j0 = place.j;
  const int n = args.fan_in, ld = byte_row(n);
  // written by sample_backward and output_backward, behind which weight_gradients comes: no launch before writes them
  const i64 step = read_early(&args.loop->step);
  const bool over = step >= read_early(&args.loop->limit);
  const int rows = over ? 0 : args.rows - i0 < BM ? args.rows - i0 : BM;
  const i64 *index = args.index + step * args.rows + i0, *numbers = args.numbers + step * args.rows + i0;
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
AHEAD_KERNEL(first_layer_small, 128, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<SMALL>(args, shared);
}
AHEAD_KERNEL(first_layer_large, 256, FirstLayer) {
  SHARED_FLOATS(shared);
  first_layer_tile<LARGE>(args, shared);
}

constexpr int ROWS = 2;
constexpr int ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / 32;

// What the block's rows have at one place.
struct alignas(4 * ROWS) Pair {
  float of[ROWS];
};

DEVICE float4 rounded(const float4& v) { return {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)}; }

// sum += factor * w, of four columns; sum += d . w
DEVICE void add_multiple(float4& sum, float factor, const float4& w) {
  sum.x = multiply_add(factor, w.x, sum.x);
  sum.y = multiply_add(factor, w.y, sum.y);
  sum.z = multiply_add(factor, w.z, sum.z);
  sum.w = multiply_add(factor, w.w, sum.w);
}
DEVICE void add_product(float& sum, const float4& d, const float4& w) {
  sum = multiply_add(d.x, w.x, sum);
  sum = multiply_add(d.y, w.y, sum);
  sum = multiply_add(d.z, w.z, sum);
  sum = multiply_add(d.w, w.w, sum);
}

struct SampleRows {
  Matrix h, w_heads, heads, z, w, y;  // h (M, H), heads (M, 2 J), z (R, J), y (R, fan_out)
  float *eps, *kl;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;  // sampled: kl of each draw, as in latent.cu
  int slices, length;  // H in slices of a multiple of HEADS_AHEAD, each of which so many threads sum as are for 2 J
  u64 seed;
  const Loop* loop;
};

constexpr int HEADS_AHEAD = 10, LATENT_AHEAD = 20;  // weights of a thread that are asked for at once

// Shared memory: parts of the heads [ROWS][slices][2 J, an odd number of fours], h [slices * length, whole fours] and z
// [L][J, whole LATENT_AHEAD] of both rows, zero beyond their widths; noise [L][ROWS][J], where then the terms of kl
// are. A block asks for its weights, all of them where they are not too many, while the launch before runs.
//
// Grid: one block per ROWS rows of the minibatch.
AHEAD_KERNEL(sample_rows, ROW_THREADS, SampleRows) {
  SHARED_FLOATS(parts);
  const int m0 = blockIdx.x * ROWS, n = args.latent_dim, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int fours = (2 * n + 3) / 4, parts_ld = 4 * (fours | 1);  // odd: rows of parts begin in different banks
  const int slice = thread / fours, four = (thread - slice * fours) * 4, h_end = (args.slices * args.length + 3) / 4 * 4;
  const int z_ld = (n + LATENT_AHEAD - 1) / LATENT_AHEAD * LATENT_AHEAD;
  Pair *h = reinterpret_cast<Pair*>(parts + ROWS * args.slices * parts_ld), *z = h + h_end;
  float* noise = reinterpret_cast<float*>(z + args.draws * z_ld);

  const int heads_ld = static_cast<int>(args.w_heads.ld), w_ld = static_cast<int>(args.w.ld);
  float4 w_heads[HEADS_AHEAD];
  auto ask_heads = [&](int k0) {
    UNROLL
    for (int u = 0; u < HEADS_AHEAD; ++u) {
      const int k = k0 + u < args.hidden ? k0 + u : args.hidden;  // h is zero there
      w_heads[u] = read_early(reinterpret_cast<const float4*>(args.w_heads.p + (k * heads_ld + four)));
    }
    UNROLL
    for (int u = 0; u < HEADS_AHEAD; ++u) w_heads[u] = rounded(w_heads[u]);
  };
  float w[LATENT_AHEAD], b;
  auto ask_rows = [&](int column, int j0) {
    b = read_early(args.w.p + (n * w_ld + column));
    UNROLL
    for (int u = 0; u < LATENT_AHEAD; ++u) {
      const int j = j0 + u < n ? j0 + u : n;  // z is zero there
      w[u] = read_early(args.w.p + (j * w_ld + column));
    }
    UNROLL
    for (int u = 0; u < LATENT_AHEAD; ++u) w[u] = rounded(w[u]);
  };
  // threads that add up the parts of mu and logvar of one row and dimension
  constexpr int SHARERS = 8, DIMENSIONS = ROW_THREADS / ROWS / SHARERS;
  const int r = warp / (ROW_WARPS / ROWS), dimension = thread / SHARERS % DIMENSIONS, sharer = thread % SHARERS;
  const float* b_heads = args.w_heads.p + args.hidden * heads_ld;
  float b_mu = early_at(b_heads, dimension, dimension < n), b_logvar = early_at(b_heads, n + dimension, dimension < n);

  ask_heads(slice * args.length);
  ask_rows(thread < args.fan_out ? thread : 0, 0);
  // moved on by sample_backward and output_backward, behind which weight_gradients and first_layer come
  const i64 step = read_early(&args.loop->step);
  const bool over = step >= read_early(&args.loop->limit);
  const u64 number = read_early(&args.loop->first) + step;
  const float* h_from = args.h.p + m0 * args.h.ld;
  ROLLED
  for (int q = warp; q < args.draws * ROWS; q += ROW_WARPS) {
    const i64 row = static_cast<i64>(q / ROWS) * args.rows + m0 + q % ROWS;
    ROLLED
    for (int j = lane; j < n; j += 32) noise[q * n + j] = normal_at(args.seed, number, STREAM_LATENT, row * n + j);
  }
  ROLLED
  for (int e = thread; e < args.draws * z_ld; e += ROW_THREADS) z[e] = {};
  wait_for_launch_before();
  if (over) return;

  ROLLED
  for (int k = 4 * thread; k < h_end; k += 4 * ROW_THREADS) {
    float4 v[ROWS];
    UNROLL
    for (int i = 0; i < ROWS; ++i)
      v[i] = m0 + i < args.rows && k < args.hidden
                 ? *reinterpret_cast<const float4*>(h_from + i * args.h.ld + k)
                 : float4{0.0f, 0.0f, 0.0f, 0.0f};
    static_assert(ROWS == 2, "two columns of both rows make sixteen bytes");
    *reinterpret_cast<float4*>(h + k) = {v[0].x, v[1].x, v[0].y, v[1].y};
    *reinterpret_cast<float4*>(h + k + 2) = {v[0].z, v[1].z, v[0].w, v[1].w};
  }
  block_barrier();
  if (slice < args.slices) {
    float4 sum[ROWS] = {};
    ROLLED
    for (int k0 = slice * args.length, end = k0 + args.length, k = k0; k < end; k += HEADS_AHEAD) {
      if (k > k0) ask_heads(k);
      UNROLL
      for (int u = 0; u < HEADS_AHEAD; ++u) {
        const Pair pair = h[k + u];
        UNROLL
        for (int i = 0; i < ROWS; ++i) add_multiple(sum[i], pair.of[i], w_heads[u]);
      }
    }
    UNROLL
    for (int i = 0; i < ROWS; ++i)
      *reinterpret_cast<float4*>(parts + (i * args.slices + slice) * parts_ld + four) = sum[i];
  }
  block_barrier();

  ROLLED
  for (int j0 = 0; j0 < n; j0 += DIMENSIONS) {
    constexpr int PARTS_AHEAD = 7;
    const int j = j0 + dimension;
    const float* part = parts + r * args.slices * parts_ld + (j < n ? j : 0);
    float mu = 0.0f, logvar = 0.0f;
    ROLLED
    for (int i0 = sharer; i0 < args.slices; i0 += SHARERS * PARTS_AHEAD) {
      UNROLL
      for (int u = 0; u < PARTS_AHEAD; ++u) {
        const int i = i0 + SHARERS * u;
        mu += i < args.slices ? part[i * parts_ld] : 0.0f;
        logvar += i < args.slices ? part[i * parts_ld + n] : 0.0f;
      }
    }
    for (int distance = SHARERS / 2; distance; distance /= 2) {
      mu += shuffle_xor(mu, distance);
      logvar += shuffle_xor(logvar, distance);
    }
    if (j >= n || m0 + r >= args.rows) continue;
    if (j0 > 0) b_mu = b_heads[j], b_logvar = b_heads[n + j];
    mu += b_mu, logvar += b_logvar;
    const float sd = expf(0.5f * logvar), twice_kl = mu * mu + exp_minus_1_minus(logvar, expf(logvar));
    ROLLED
    for (int l = sharer; l < args.draws; l += SHARERS) {
      const i64 row = static_cast<i64>(l) * args.rows + m0 + r;
      float& place = noise[(l * ROWS + r) * n + j];
      const float eps = place, sample = mu + sd * eps;
      z[l * z_ld + j].of[r] = rounded(sample);
      place = args.sampled ? sample * sample - eps * eps - logvar : twice_kl;
      args.eps[row * n + j] = eps;
      args.z.p[row * args.z.ld + j] = sample;
    }
    if (sharer < 2) args.heads.p[(m0 + r) * args.heads.ld + sharer * n + j] = sharer ? logvar : mu;
  }
  block_barrier();

  ROLLED
  for (int column = thread; column < args.fan_out; column += ROW_THREADS) {
    ROLLED
    for (int l = 0; l < args.draws; ++l) {
      float sum[ROWS] = {};
      ROLLED
      for (int j0 = 0; j0 < n; j0 += LATENT_AHEAD) {
        if (column > thread || l > 0 || j0 > 0) ask_rows(column, j0);
        UNROLL
        for (int u = 0; u < LATENT_AHEAD; ++u) {
          const Pair pair = z[l * z_ld + j0 + u];
          UNROLL
          for (int i = 0; i < ROWS; ++i) sum[i] = multiply_add(pair.of[i], w[u], sum[i]);
        }
      }
      UNROLL
      for (int i = 0; i < ROWS; ++i)
        if (m0 + i < args.rows)
          args.y.p[(static_cast<i64>(l) * args.rows + m0 + i) * args.y.ld + column] =
              rounded(activate(args.activation, sum[i] + b));
    }
  }
  ROLLED
  for (int q = warp; q < (args.sampled ? args.draws : 1) * ROWS; q += ROW_WARPS) {
    const int l = q / ROWS, m = m0 + q % ROWS;
    if (m >= args.rows) continue;
    float twice_kl = 0.0f;
    ROLLED
    for (int j = lane; j < n; j += 32) twice_kl += noise[q * n + j];
    twice_kl = warp_sum(twice_kl);
    if (lane == 0) args.kl[static_cast<i64>(l) * args.rows + m] = 0.5f * twice_kl;
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
  typedef Product<BM, BN, THREADS, true, false> TileProduct;
  constexpr int N = TileProduct::elements;
  const int n = args.density.data_dim;
  const Place corner = tile_place<BM, BN>(blockIdx.x, n);
  const int i0 = corner.i, j0 = corner.j;
  const Operand h = {args.h.p, args.h.ld, args.rows};
  auto nothing = [](const auto&, const auto&) {};
  float x[N], a[N], s[N];
  auto read_x = [&] {
    const Window from = {args.x.p + j0, static_cast<int>(args.x.ld), args.rows - i0, n - j0};
    const bool own = args.x_rows == args.rows;  // then there is no quotient to be had
    read_elements<TileProduct>(from, x, [&](int i) { return own ? i0 + i : (i0 + i) % args.x_rows; });
  };
  if (TileProduct::READ_AHEAD) read_x();
  TileProduct first, second;
  begin_with(first, bias_window(args.w, args.fan_in, j0, n));
  if (GAUSSIAN) begin_with(second, bias_window({args.w.p + n, args.w.ld}, args.fan_in, j0, n));
  if (!first.run(
          shared, h, {args.w.p, args.w.ld, n}, args.fan_in, i0, j0, EARLY_B, [&] { return forward_goes_on(args.loop); },
          nothing))
    return;
  block_barrier();
  if constexpr (GAUSSIAN) {
    second.run(shared, h, {args.w.p + n, args.w.ld, n}, args.fan_in, i0, j0, EARLY_B, [] { return true; }, nothing);
    block_barrier();
  }
  if (!TileProduct::READ_AHEAD) read_x();
  take_sums(first, a);
  if (GAUSSIAN) take_sums(second, s);
  UNROLL
  for (int e = 0; e < N; ++e) {  // x becomes the terms of log p(x|z), a and s their derivatives
    const Point p = GAUSSIAN ? gaussian(args.density, x[e], a[e], s[e]) : bernoulli(x[e], a[e]);
    x[e] = p.log_px, a[e] = args.scale * p.dfirst, s[e] = args.scale * p.dsecond;
  }
  write_elements<TileProduct>(window(args.dout, corner, args.rows, n), a);
  if (GAUSSIAN) write_elements<TileProduct>(window({args.dout.p + n, args.dout.ld}, corner, args.rows, n), s);

  // terms come to shared memory, where each row is summed by THREADS / BM threads
  constexpr int ld = BN + 1, sharers = THREADS / BM;
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
AHEAD_KERNEL(bernoulli_layer_small, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SMALL, false>(args, shared);
}
AHEAD_KERNEL(bernoulli_layer_large, 256, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<LARGE, false>(args, shared);
}
AHEAD_KERNEL(gaussian_layer_small, 128, OutputLayer) {
  SHARED_FLOATS(shared);
  output_layer_tile<SMALL, true>(args, shared);
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
template <int BM, int BN, int THREADS>
DEVICE void output_backward_tile(const OutputBackward& args, float* shared) {
  if (blockIdx.x + 1 == gridDim.x) {
    wait_for_launch_before();
    return sum_statistics<THREADS>(args.statistics, shared);
  }
  input_gradient_tile<BM, BN, THREADS>(args.gradient, blockIdx.x, shared);
}
AHEAD_KERNEL(output_backward_small, 128, OutputBackward) {
  SHARED_FLOATS(shared);
  output_backward_tile<SMALL>(args, shared);
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
