// The phases of the fused loop whose products are too narrow for tiles: from the encoder's last hidden layer through
// the heads and the sample to the decoder's first layer, and back.
//
// A block takes ROWS rows of the minibatch through all that its launch does, and multiplies, in every precision by
// FFMA, operands rounded as tiles would round them. The sums have an order of their own, which depends on the widths
// alone.
#include "elements.cuh"
#include "functions.cuh"
#include "philox.cuh"
#include "product.cuh"

constexpr int ROWS = 2;
constexpr int ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / 32;

// What the block's rows have at one place.
struct alignas(4 * ROWS) Pair {
  float of[ROWS];
};

// Rounded as tiles would round it; `now`, and not only where it is used.
DEVICE float4 rounded(const float4& v) { return {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)}; }
DEVICE float rounded_now(float v) {
  v = rounded(v);
  settle(v);
  return v;
}
DEVICE float4 rounded_now(const float4& v) {
  return {rounded_now(v.x), rounded_now(v.y), rounded_now(v.z), rounded_now(v.w)};
}

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
  float *eps, *kl;                    // kl (M, J) or, sampled, (R, J): the terms of each dimension, as in latent.cu
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;
  int slices, length;  // H in slices of a multiple of HEADS_AHEAD, each of which so many threads sum as are for 2 J
  u64 seed;
  const Loop* loop;
};

constexpr int HEADS_AHEAD = 10, LATENT_AHEAD = 20;  // weights of a thread that are asked for at once

// Shared memory: parts of the heads [ROWS][slices][2 J, an odd number of fours], h [slices * length, whole fours] and z
// [L][J, whole LATENT_AHEAD] of both rows, zero beyond their widths; noise [L][ROWS][J]. A block asks for its weights,
// all of them where they are not too many, while the launch before runs.
//
// Grid: one block per ROWS rows of the minibatch.
AHEAD_KERNEL(sample_rows, ROW_THREADS, SampleRows) {
  SHARED_FLOATS(parts);
  const int m0 = blockIdx.x * ROWS, n = args.latent_dim, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int fours = (2 * n + 3) / 4, parts_ld = 4 * (fours | 1);  // odd: rows of parts begin in different banks
  const int slice = thread / fours, four = (thread - slice * fours) * 4,
            h_end = (args.slices * args.length + 3) / 4 * 4;
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
  };
  auto round_heads = [&] {
    UNROLL
    for (int u = 0; u < HEADS_AHEAD; ++u) w_heads[u] = rounded_now(w_heads[u]);
  };
  float w[LATENT_AHEAD], b;
  auto ask_rows = [&](int column, int j0) {
    b = read_early(args.w.p + (n * w_ld + column));
    UNROLL
    for (int u = 0; u < LATENT_AHEAD; ++u) {
      const int j = j0 + u < n ? j0 + u : n;  // z is zero there
      w[u] = read_early(args.w.p + (j * w_ld + column));
    }
  };
  auto round_rows = [&] {
    UNROLL
    for (int u = 0; u < LATENT_AHEAD; ++u) w[u] = rounded_now(w[u]);
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
  round_heads();
  round_rows();
  ROLLED
  for (int e = thread; e < args.draws * z_ld; e += ROW_THREADS) z[e] = {};  // a loop: what is above is not put off
  wait_for_launch_before();
  if (over) return;

  ROLLED
  for (int k = 4 * thread; k < h_end; k += 4 * ROW_THREADS) {
    float4 v[ROWS];
    UNROLL
    for (int i = 0; i < ROWS; ++i)
      v[i] = m0 + i < args.rows && k < args.hidden ? *reinterpret_cast<const float4*>(h_from + i * args.h.ld + k)
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
      if (k > k0) ask_heads(k), round_heads();
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
      const int row = l * args.rows + m0 + r;
      const float eps = noise[(l * ROWS + r) * n + j], sample = mu + sd * eps;
      z[l * z_ld + j].of[r] = rounded(sample);
      args.eps[row * n + j] = eps;
      args.z.p[row * args.z.ld + j] = sample;
      if (args.sampled || l == 0)
        args.kl[row * n + j] = 0.5f * (args.sampled ? sample * sample - eps * eps - logvar : twice_kl);
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
        if (column > thread || l > 0 || j0 > 0) ask_rows(column, j0), round_rows();
        UNROLL
        for (int u = 0; u < LATENT_AHEAD; ++u) {
          const Pair pair = z[l * z_ld + j0 + u];
          UNROLL
          for (int i = 0; i < ROWS; ++i) sum[i] = multiply_add(pair.of[i], w[u], sum[i]);
        }
      }
      UNROLL
      for (int i = 0; i < ROWS; ++i) sum[i] += b;
      activate_all(args.activation, sum);
      float* y = args.y.p + (static_cast<i64>(l) * args.rows + m0) * args.y.ld + column;
      UNROLL
      for (int i = 0; i < ROWS; ++i)
        if (m0 + i < args.rows) y[i * args.y.ld] = rounded(sum[i]);
    }
  }
}

// A warp sums two columns of dz, lanes side by side along fan_out. Two lanes sum a row of dh, side by side along the
// heads, and several hundred of them two rows each.
constexpr int COLUMNS = 2, DZ_AHEAD = 4, DZ_STEP = 4 * 32 * DZ_AHEAD;
constexpr int LANES = 2, DH_STEP = ROW_THREADS / LANES, DH_ROWS = 2, DH_AHEAD = 5, DH_COLUMNS = 4 * LANES * DH_AHEAD;

struct SampleBackward {
  Matrix dy, w, heads, dheads, w_heads, h, dh;  // dy (R, fan_out), heads and dheads (M, 2 J), h and dh (M, H)
  const float* eps;
  int draws, rows, hidden, latent_dim, fan_out, activation, sampled;
  Loop* loop;
};

// Grid: one block per ROWS rows of the minibatch. Shared memory: dheads [ROWS][2 J, whole DH_COLUMNS], dy [ROWS]
// [fan_out, whole DZ_STEP] of one draw, both zero beyond their widths; [ROWS][J] of what the gradient by the heads
// wants, noise [L][ROWS][J], and of the loop what all read. Weights are asked for as in sample_rows.
AHEAD_KERNEL(sample_backward, ROW_THREADS, SampleBackward) {
  SHARED_FLOATS(dheads);
  struct Now {
    int complete;
    float kl_scale;
  };
  struct Latent {
    float mu, sd, of_kl;  // of_kl: twice the KL divergence's derivative by logvar
  };
  const int m0 = blockIdx.x * ROWS, n = args.latent_dim, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int heads_ld = (2 * n + DH_COLUMNS - 1) / DH_COLUMNS * DH_COLUMNS;
  const int dy_ld = (args.fan_out + DZ_STEP - 1) / DZ_STEP * DZ_STEP;
  const int w_ld = static_cast<int>(args.w.ld), w_heads_ld = static_cast<int>(args.w_heads.ld);
  const int h_ld = static_cast<int>(args.h.ld);
  float* dy = dheads + ROWS * heads_ld;
  Latent* latent = reinterpret_cast<Latent*>(dy + ROWS * dy_ld);
  float* noise = reinterpret_cast<float*>(latent + ROWS * n);
  Now* now = reinterpret_cast<Now*>(noise + args.draws * ROWS * n);

  float4 w[COLUMNS][DZ_AHEAD];
  auto ask_dz = [&](int j0, int k0) {
    UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      UNROLL
      for (int u = 0; u < DZ_AHEAD; ++u) {
        const int j = j0 + c * ROW_WARPS, k = k0 + 4 * (32 * u + lane);
        const int at = (j < n ? j : 0) * w_ld + (k < args.fan_out ? k : 0);  // dy is zero there, or dz of no concern
        w[c][u] = read_early(reinterpret_cast<const float4*>(args.w.p + at));
      }
    }
  };
  auto round_dz = [&] {
    UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      UNROLL
      for (int u = 0; u < DZ_AHEAD; ++u) w[c][u] = rounded_now(w[c][u]);
    }
  };
  const int dh_row = thread / LANES, part = lane % LANES;
  float4 w_heads[DH_ROWS][DH_AHEAD];
  auto ask_dh = [&](int k0, int c0) {
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) {
      UNROLL
      for (int u = 0; u < DH_AHEAD; ++u) {
        const int k = k0 + i * DH_STEP + dh_row, c = c0 + 4 * (LANES * u + part);
        const int at = (k < args.hidden ? k : 0) * w_heads_ld + (c < 2 * n ? c : 0);  // likewise
        w_heads[i][u] = read_early(reinterpret_cast<const float4*>(args.w_heads.p + at));
      }
    }
  };
  constexpr bool LATE = FASTVAE_PRECISION == TF32;  // whose rounding would want more registers than there are
  auto round_dh = [&] {
    UNROLL
    for (int i = 0; i < DH_ROWS && !LATE; ++i) {
      UNROLL
      for (int u = 0; u < DH_AHEAD; ++u) w_heads[i][u] = rounded_now(w_heads[i][u]);
    }
  };
  static_assert(ROWS == LANES, "a lane stores a row of the minibatch");
  const bool stores = m0 + part < args.rows;
  float h[DH_ROWS];
  auto ask_h = [&](int k0) {
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) {
      const int k = k0 + i * DH_STEP + dh_row;
      h[i] = read_early(args.h.p + (stores && k < args.hidden ? (m0 + part) * h_ld + k : 0));
    }
  };
  ask_dz(warp, 0);
  ask_dh(0, 0);
  ask_h(0);
  ROLLED
  for (int q = warp; q < args.draws * ROWS; q += ROW_WARPS) {
    const int row = q / ROWS * args.rows + m0 + q % ROWS;
    ROLLED
    for (int j = lane; j < n && m0 + q % ROWS < args.rows; j += 32)
      noise[q * n + j] = read_early(args.eps + row * n + j);
  }
  // by other warps, beside it
  const int last = ROW_WARPS - 1 - warp;
  ROLLED
  for (int j = lane; j < n && last < ROWS && m0 + last < args.rows; j += 32) {
    const float* heads = args.heads.p + (m0 + last) * args.heads.ld + j;
    const float mu = read_early(heads), v = read_early(heads + n);
    const float of_kl = args.sampled ? static_cast<float>(-args.draws) : exp_minus_1_minus(v, expf(v)) + v;
    latent[last * n + j] = {mu, expf(0.5f * v), of_kl};
  }
  round_dz();
  round_dh();
  ROLLED
  for (int e = thread; e < ROWS * heads_ld; e += ROW_THREADS) dheads[e] = 0.0f;  // a loop: as in sample_rows
  wait_for_launch_before();
  if (thread == ROW_THREADS - 1) {  // while others bring dy
    const i64 step = args.loop->step;
    *now = {args.loop->complete, args.loop->now.kl_scale};
    if (blockIdx.x == 0 && now->complete) args.loop->step = step + 1;
  }

  ROLLED
  for (int l = 0; l < args.draws; ++l) {
    if (l > 0) block_barrier();  // dy may still be read
    constexpr int SHARERS = ROW_THREADS / ROWS;
    const int r = warp / (ROW_WARPS / ROWS), m = m0 + r;
    ROLLED
    for (int k = thread % SHARERS * 4; k < dy_ld; k += SHARERS * 4) {
      float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
      if (m < args.rows && k < args.fan_out)
        v = *reinterpret_cast<const float4*>(args.dy.p + (static_cast<i64>(l) * args.rows + m) * args.dy.ld + k);
      *reinterpret_cast<float4*>(dy + r * dy_ld + k) = rounded(v);
    }
    block_barrier();
    if (!now->complete) return;
    ROLLED
    for (int j0 = warp; j0 < n; j0 += COLUMNS * ROW_WARPS) {
      float sum[COLUMNS * ROWS] = {};
      ROLLED
      for (int k0 = 0; k0 < args.fan_out; k0 += DZ_STEP) {
        if (l > 0 || j0 > warp || k0 > 0) ask_dz(j0, k0), round_dz();
        UNROLL
        for (int u = 0; u < DZ_AHEAD; ++u) {
          const int k = k0 + 4 * (32 * u + lane);
          UNROLL
          for (int i = 0; i < ROWS; ++i) {
            const float4 d = *reinterpret_cast<const float4*>(dy + i * dy_ld + k);
            UNROLL
            for (int c = 0; c < COLUMNS; ++c) add_product(sum[c * ROWS + i], d, w[c][u]);
          }
        }
      }
      const float dz = scattered_sum<32>(sum);
      constexpr int OF_SUM = 32 / (COLUMNS * ROWS);  // lanes with the same one
      const int i = lane / OF_SUM % ROWS, j = j0 + lane / OF_SUM / ROWS * ROW_WARPS;
      if (lane % OF_SUM > 0 || j >= n || m0 + i >= args.rows) continue;
      const Latent at = latent[i * n + j];
      const float eps = noise[(l * ROWS + i) * n + j], kl_scale = now->kl_scale;
      const float d = args.sampled ? dz - kl_scale * (at.mu + at.sd * eps) : dz;
      float &dmu = dheads[i * heads_ld + j], &dlogvar = dheads[i * heads_ld + n + j];  // at first sums over the draws
      dmu += d;
      dlogvar += d * eps;
      if (l + 1 < args.draws) continue;
      const float by_mu = args.sampled ? dmu : dmu - kl_scale * at.mu;
      const float by_logvar = 0.5f * (at.sd * dlogvar - kl_scale * at.of_kl);
      float* to = args.dheads.p + (m0 + i) * args.dheads.ld + j;
      to[0] = by_mu, to[n] = by_logvar;
      dmu = rounded(by_mu), dlogvar = rounded(by_logvar);
    }
  }
  block_barrier();

  ROLLED
  for (int k0 = 0; k0 < args.hidden; k0 += DH_ROWS * DH_STEP) {
    float sum[DH_ROWS][ROWS] = {}, total[DH_ROWS];
    ROLLED
    for (int c0 = 0; c0 < 2 * n; c0 += DH_COLUMNS) {
      if (k0 > 0 || c0 > 0) ask_dh(k0, c0), round_dh();
      UNROLL
      for (int u = 0; u < DH_AHEAD; ++u) {
        const int c = c0 + 4 * (LANES * u + part);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const float4 d = *reinterpret_cast<const float4*>(dheads + r * heads_ld + c);
          UNROLL
          for (int i = 0; i < DH_ROWS; ++i) add_product(sum[i][r], d, LATE ? rounded(w_heads[i][u]) : w_heads[i][u]);
        }
      }
    }
    if (k0 > 0) ask_h(k0);
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) total[i] = scattered_sum<LANES>(sum[i]);
    times_slope(args.activation, total, h);
    UNROLL
    for (int i = 0; i < DH_ROWS; ++i) {
      const int k = k0 + i * DH_STEP + dh_row;
      if (stores && k < args.hidden) args.dh.p[(m0 + part) * args.dh.ld + k] = total[i];
    }
  }
}
