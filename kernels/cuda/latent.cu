// The sample, the KL divergence, and the gradients of both to mu and logvar.
//
//   z = mu + exp(logvar / 2) eps (section 2.4); kl = -1/2 sum_j (1 + logvar - mu^2 - exp(logvar)) (appendix B)
//   dmu = sum_l dz - s mu; dlogvar = 1/2 (exp(logvar / 2) sum_l dz eps - s (exp(logvar) - 1))
//
// Or with log q(z|x) - log p(z) at each draw in its place (equation 6):
//
//   kl_l = 1/2 sum_j (z_l^2 - eps_l^2 - logvar); with g = dz - weight z:
//   dmu = sum_l g; dlogvar = 1/2 (exp(logvar / 2) sum_l g eps + sum_l weight)
//
// mu, logvar, dmu, dlogvar (M, J); eps [L][M][J]; z and dz have row l * M + m. Forward keeps eps where it draws it.
// Grid: one warp per row of M.
#include "functions.cuh"
#include "philox.cuh"

struct Latent {
  Matrix mu, logvar;
  float* eps;
  Matrix z;
  float* kl;            // (M,), sampled [L][M]
  const float* weight;  // sampled: of each draw's kl, [L][M]; null within the loop where all are the step's kl_scale
  Matrix dz, dmu, dlogvar;
  int draws, rows, latent_dim;
  float kl_scale;
  u64 seed;
  Loop* loop;  // null outside the fused loop; within it forward draws eps and backward reads the step's kl_scale
};

constexpr int ROWS_PER_BLOCK = 4;

DEVICE float eps_at(const Latent& args, u64 step, i64 element) {
  if (!args.loop) return args.eps[element];
  const float eps = normal_at(args.seed, step, STREAM_LATENT, element);
  args.eps[element] = eps;
  return eps;
}

KERNEL(latent_forward, 32 * ROWS_PER_BLOCK, Latent) {
  if (forward_is_over(args.loop)) return;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  const u64 step = args.loop ? args.loop->first + args.loop->step : 0;
  float twice_kl = 0.0f;
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    float mu = args.mu.p[m * args.mu.ld + j], v = args.logvar.p[m * args.logvar.ld + j];
    float sd = expf(0.5f * v);
    twice_kl += mu * mu + exp_minus_1_minus(v, expf(v));
    for (int l = 0; l < args.draws; ++l) {
      i64 row = static_cast<i64>(l) * args.rows + m, element = row * n + j;
      args.z.p[row * args.z.ld + j] = mu + sd * eps_at(args, step, element);
    }
  }
  twice_kl = warp_sum(twice_kl);
  if (threadIdx.x % 32 == 0) args.kl[m] = 0.5f * twice_kl;
}

KERNEL(latent_backward, 32 * ROWS_PER_BLOCK, Latent) {
  if (backward_is_over(args.loop)) return;
  if (args.loop && blockIdx.x == 0 && threadIdx.x == 0) args.loop->step += 1;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  const float kl_scale = args.loop ? args.loop->now.kl_scale : args.kl_scale;
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    float mu = args.mu.p[m * args.mu.ld + j], v = args.logvar.p[m * args.logvar.ld + j];
    float dz_sum = 0.0f, dz_eps = 0.0f;
    for (int l = 0; l < args.draws; ++l) {
      i64 row = static_cast<i64>(l) * args.rows + m;
      float dz = args.dz.p[row * args.dz.ld + j];
      dz_sum += dz;
      dz_eps += dz * args.eps[row * n + j];
    }
    float expm1 = exp_minus_1_minus(v, expf(v)) + v;
    args.dmu.p[m * args.dmu.ld + j] = dz_sum - kl_scale * mu;
    args.dlogvar.p[m * args.dlogvar.ld + j] = 0.5f * (expf(0.5f * v) * dz_eps - kl_scale * expm1);
  }
}

KERNEL(latent_forward_sampled, 32 * ROWS_PER_BLOCK, Latent) {
  if (forward_is_over(args.loop)) return;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  const u64 step = args.loop ? args.loop->first + args.loop->step : 0;
  for (int l = 0; l < args.draws; ++l) {
    const i64 row = static_cast<i64>(l) * args.rows + m;
    float twice_kl = 0.0f;
    for (int j = threadIdx.x % 32; j < n; j += 32) {
      const float v = args.logvar.p[m * args.logvar.ld + j], eps = eps_at(args, step, row * n + j);
      const float z = args.mu.p[m * args.mu.ld + j] + expf(0.5f * v) * eps;
      args.z.p[row * args.z.ld + j] = z;
      twice_kl += z * z - eps * eps - v;
    }
    twice_kl = warp_sum(twice_kl);
    if (threadIdx.x % 32 == 0) args.kl[row] = 0.5f * twice_kl;
  }
}

KERNEL(latent_backward_sampled, 32 * ROWS_PER_BLOCK, Latent) {
  if (backward_is_over(args.loop)) return;
  if (args.loop && blockIdx.x == 0 && threadIdx.x == 0) args.loop->step += 1;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    const float mu = args.mu.p[m * args.mu.ld + j], sd = expf(0.5f * args.logvar.p[m * args.logvar.ld + j]);
    float dz_sum = 0.0f, dz_eps = 0.0f, weights = 0.0f;
    for (int l = 0; l < args.draws; ++l) {
      const i64 row = static_cast<i64>(l) * args.rows + m;
      const float weight = args.weight ? args.weight[row] : args.loop->now.kl_scale, eps = args.eps[row * n + j];
      const float dz = args.dz.p[row * args.dz.ld + j] - weight * (mu + sd * eps);
      dz_sum += dz;
      dz_eps += dz * eps;
      weights += weight;
    }
    args.dmu.p[m * args.dmu.ld + j] = dz_sum;
    args.dlogvar.p[m * args.dlogvar.ld + j] = 0.5f * (sd * dz_eps + weights);
  }
}

// Of wake-sleep, within the fused loop: z ~ N(0, I), and log q(z|x) of what was dreamt there. With
// eps = (z - mu) / exp(logvar / 2): dmu = eps / exp(logvar / 2), dlogvar = (eps^2 - 1) / 2, of the mean over M.
struct Dream {
  Matrix z, mu, logvar, dmu, dlogvar;
  int rows, latent_dim;
  u64 seed;
  Loop* loop;
};

KERNEL(dream_forward, 32 * ROWS_PER_BLOCK, Dream) {
  if (forward_is_over(args.loop)) return;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  const u64 step = args.loop->first + args.loop->step;
  for (int j = threadIdx.x % 32; j < n; j += 32)
    args.z.p[m * args.z.ld + j] = normal_at(args.seed, step, STREAM_DREAM_LATENT, static_cast<i64>(m) * n + j);
}

KERNEL(dream_backward, 32 * ROWS_PER_BLOCK, Dream) {
  if (backward_is_over(args.loop)) return;
  if (blockIdx.x == 0 && threadIdx.x == 0) args.loop->step += 1;
  const int m = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / 32, n = args.latent_dim;
  if (m >= args.rows) return;
  const float scale = 1.0f / static_cast<float>(args.rows);
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    const float inverse_sd = expf(-0.5f * args.logvar.p[m * args.logvar.ld + j]);
    const float eps = (args.z.p[m * args.z.ld + j] - args.mu.p[m * args.mu.ld + j]) * inverse_sd;
    args.dmu.p[m * args.dmu.ld + j] = scale * (eps * inverse_sd);
    args.dlogvar.p[m * args.dlogvar.ld + j] = 0.5f * scale * (eps * eps - 1.0f);
  }
}
