// log p(x|z) and its gradient from the decoder's heads in one pass, row by row.
//
//   bernoulli: sum_d x a - max(a, 0) - log1p(exp(-|a|)); gradient x - sigmoid(a)
//   gaussian:  -1/2 sum_d log(2 pi) + logvar + (x - mean)^2 / exp(logvar), logvar = floor + softplus(s - floor)
//
// x (M, D); out and dout (R, D) or (R, 2 D), row r belongs to x[r % M]; log_px (R,).
#include "likelihood.cuh"
#include "philox.cuh"
#include "statistics.cuh"

struct Likelihood {
  Density density;
  Matrix x, out, dout;  // dout.p null where no gradient is asked for
  float* log_px;
  float scale;
  int x_rows;
  const Loop* loop;
};

// Grid: one block per row of out.
KERNEL(likelihood, 256, Likelihood) {
  SHARED_FLOATS(scratch);
  if (forward_is_over(args.loop)) return;
  const int r = blockIdx.x;
  const float *x = args.x.p + r % args.x_rows * args.x.ld, *out = args.out.p + r * args.out.ld;
  float* dout = args.dout.p ? args.dout.p + r * args.dout.ld : nullptr;
  float sum = 0.0f;
  const int n = args.density.data_dim;
  for (int d = threadIdx.x; d < n; d += 256) {
    Point p = args.density.gaussian ? gaussian(args.density, x[d], out[d], out[n + d]) : bernoulli(x[d], out[d]);
    sum += p.log_px;
    if (dout) dout[d] = args.scale * p.dfirst;
    if (dout && args.density.gaussian) dout[n + d] = args.scale * p.dsecond;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) args.log_px[r] = sum;
}

struct Mean {
  Density density;
  Matrix out, mean;
};

// Grid: one block per row.
KERNEL(likelihood_mean, 256, Mean) {
  const float* out = args.out.p + blockIdx.x * args.out.ld;
  float* mean = args.mean.p + blockIdx.x * args.mean.ld;
  for (int d = threadIdx.x; d < args.density.data_dim; d += 256)
    mean[d] = args.density.identity_mean ? out[d] : sigmoid(out[d]);
}

struct Sample {
  Density density;
  Matrix out, x;
  u64 seed, step;
  int rows;
  const Loop* loop;  // null outside the fused loop, whose step it else is
};

// x ~ p(x|z): [u < sigmoid(a)], mean + exp(logvar / 2) n. A thread draws the four elements of a block of the noise.
KERNEL(likelihood_sample, 256, Sample) {
  if (forward_is_over(args.loop)) return;
  const int n = args.density.data_dim;
  const i64 first = 4 * (static_cast<i64>(blockIdx.x) * 256 + threadIdx.x), end = static_cast<i64>(args.rows) * n;
  if (first >= end) return;
  const u64 step = args.loop ? args.loop->first + args.loop->step : args.step;
  const Words words = philox_block(args.seed, step, STREAM_DREAM, static_cast<u32>(first / 4));
  float normals[4];
  normal_block(words, normals);
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const i64 element = first + i;
    if (element >= end) return;
    const i64 r = element / n, d = element % n;
    const float* out = args.out.p + r * args.out.ld + d;
    args.x.p[r * args.x.ld + d] = args.density.gaussian ? gaussian_sample(args.density, out[0], out[n], normals[i])
                                                        : below(words.word[i], sigmoid(out[0]));
  }
}

struct Prior {
  Matrix z, dz;  // dz.p null where no gradient is asked for
  float* log_pxz;
  int rows, latent_dim;
};

// log p(x|z) becomes log p(x, z): adds log N(z; 0, I) = -1/2 sum_j log(2 pi) + z_j^2, and -z to the gradient.
// Grid: one warp per row.
KERNEL(add_prior, 128, Prior) {
  const int r = blockIdx.x * 4 + threadIdx.x / 32;
  if (r >= args.rows) return;
  float twice = 0.0f;
  for (int j = threadIdx.x % 32; j < args.latent_dim; j += 32) {
    float z = args.z.p[r * args.z.ld + j];
    twice += LOG_TWO_PI + z * z;
    if (args.dz.p) args.dz.p[r * args.dz.ld + j] -= z;
  }
  twice = warp_sum(twice);
  if (threadIdx.x % 32 == 0) args.log_pxz[r] -= 0.5f * twice;
}

struct Weigh {
  Matrix dout;               // weighed; p null where it is still to be made
  const float *log_px, *kl;  // (R, parts), whose sum is log p(x|z); (R,) log q(z|x) - log p(z)
  float* weights;            // (R,)
  float *means, *excesses;   // (M,)
  int draws, rows, columns, parts;
  const Loop* loop;
};

// Of the importance-weighted bound (Burda et al. 2016), for each datapoint, with log w = log p(x|z) - kl of its draws:
// weights w / (M sum w), the mean of log p(x|z) under them, and what that exceeds log(sum w / L) by. Every warp works
// the weights out, to weigh some of the rows.
//
// Grid: one block per datapoint.
KERNEL(weigh, 256, Weigh) {
  if (forward_is_over(args.loop)) return;
  const int m = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto log_px = [&](int l) {
    const float* parts = args.log_px + (static_cast<i64>(l) * args.rows + m) * args.parts;
    double sum = 0.0;
    for (int i = 0; i < args.parts; ++i) sum += static_cast<double>(parts[i]);
    return sum;
  };
  auto log_w = [&](int l, double of_x) { return of_x - static_cast<double>(args.kl[l * args.rows + m]); };

  double largest = static_cast<double>(from_bits(0xff800000u)), total = 0.0, mean = 0.0;
  for (int l = lane; l < args.draws; l += 32) {
    const double v = log_w(l, log_px(l));
    if (v > largest) largest = v;
  }
  for (int distance = 16; distance; distance /= 2) {
    const double v = shuffle_xor(largest, distance);
    if (v > largest) largest = v;
  }
  for (int l = lane; l < args.draws; l += 32) {
    const double of_x = log_px(l), w = exp(log_w(l, of_x) - largest);
    total += w;
    mean += w * of_x;
  }
  total = warp_sum(total);
  mean = warp_sum(mean) / total;
  if (threadIdx.x == 0) {
    args.means[m] = static_cast<float>(mean);
    args.excesses[m] = static_cast<float>(mean - (largest + log(total / args.draws)));
  }
  for (int l = warp; l < args.draws; l += 8) {
    const float weight = static_cast<float>(exp(log_w(l, log_px(l)) - largest) / (total * args.rows));
    const i64 r = static_cast<i64>(l) * args.rows + m;
    if (lane == 0) args.weights[r] = weight;
    for (int j = lane; args.dout.p && j < args.columns; j += 32) args.dout.p[r * args.dout.ld + j] *= weight;
  }
}

// Grid: one block.
KERNEL(statistics, 256, Statistics) {
  SHARED_FLOATS(scratch);
  sum_statistics<256>(args, scratch);
}
