// z = mu + exp(logvar / 2) eps (section 2.4), kl = -1/2 sum (1 + logvar - mu^2 - exp(logvar)) (appendix B), and the
// gradients of both to mu and logvar; or, for kl, log q(z|x) - log p(z) = 1/2 sum (z^2 - eps^2 - logvar) at each draw
// (equation 6). Rows of M; eps is [L][M][J], z and dz have row l * M + m.
#pragma once

// Calls f(column, lanes) over n columns, whole vectors first.
template <typename F>
inline void for_vectors(int n, F f) {
  int j = 0;
  for (; j + W <= n; j += W) f(j, W);
  if (j < n) f(j, n - j);
}
inline V load_lanes(const float* p, int lanes) { return lanes == W ? load(p) : load(p, lanes); }
inline void store_lanes(float* p, V v, int lanes) { lanes == W ? store(p, v) : store(p, v, lanes); }

void latent_forward(const Latent& g, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    const float *mu = g.mu + m * g.head_ld, *logvar = g.logvar + m * g.head_ld;
    V twice_kl = {};
    for_vectors(g.latent_dim, [&](int j, int lanes) {
      V mean = load_lanes(mu + j, lanes), v = load_lanes(logvar + j, lanes);
      V sd = exp(0.5f * v);
      twice_kl += mean * mean + exp_minus_1_minus(v, exp(v));
      for (int l = 0; l < g.draws; ++l) {
        long row = static_cast<long>(l) * g.rows + m;
        store_lanes(g.z + row * g.z_ld + j, mean + sd * load_lanes(g.eps + row * g.latent_dim + j, lanes), lanes);
      }
    });
    g.kl[m] = 0.5f * sum(twice_kl);
  }
}

void latent_backward(const Latent& g, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    const float *mu = g.mu + m * g.head_ld, *logvar = g.logvar + m * g.head_ld;
    for_vectors(g.latent_dim, [&](int j, int lanes) {
      V mean = load_lanes(mu + j, lanes), v = load_lanes(logvar + j, lanes);
      V dz = {}, dz_eps = {};
      for (int l = 0; l < g.draws; ++l) {
        long row = static_cast<long>(l) * g.rows + m;
        V d = load_lanes(g.dz + row * g.dz_ld + j, lanes);
        dz += d;
        dz_eps += d * load_lanes(g.eps + row * g.latent_dim + j, lanes);
      }
      V expm1 = exp_minus_1_minus(v, exp(v)) + v;
      store_lanes(g.dmu + m * g.dhead_ld + j, dz - g.kl_scale * mean, lanes);
      store_lanes(g.dlogvar + m * g.dhead_ld + j, 0.5f * (exp(0.5f * v) * dz_eps - g.kl_scale * expm1), lanes);
    });
  }
}

void latent_forward_sampled(const Latent& g, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    const float *mu = g.mu + m * g.head_ld, *logvar = g.logvar + m * g.head_ld;
    for (int l = 0; l < g.draws; ++l) {
      const long row = static_cast<long>(l) * g.rows + m;
      V twice_kl = {};
      for_vectors(g.latent_dim, [&](int j, int lanes) {
        V v = load_lanes(logvar + j, lanes), eps = load_lanes(g.eps + row * g.latent_dim + j, lanes);
        V z = load_lanes(mu + j, lanes) + exp(0.5f * v) * eps;
        store_lanes(g.z + row * g.z_ld + j, z, lanes);
        twice_kl += z * z - eps * eps - v;
      });
      g.kl[row] = 0.5f * sum(twice_kl);
    }
  }
}

// dz less weight z is the bound's derivative by z with the draw's KL term; log q(z|x) has one more by logvar, -1/2.
void latent_backward_sampled(const Latent& g, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    const float *mu = g.mu + m * g.head_ld, *logvar = g.logvar + m * g.head_ld;
    for_vectors(g.latent_dim, [&](int j, int lanes) {
      V mean = load_lanes(mu + j, lanes), sd = exp(0.5f * load_lanes(logvar + j, lanes));
      V dz = {}, dz_eps = {};
      float weights = 0;
      for (int l = 0; l < g.draws; ++l) {
        const long row = static_cast<long>(l) * g.rows + m;
        const float weight = g.weight ? g.weight[row] : g.kl_scale;
        V eps = load_lanes(g.eps + row * g.latent_dim + j, lanes);
        V d = load_lanes(g.dz + row * g.dz_ld + j, lanes) - weight * (mean + sd * eps);
        dz += d;
        dz_eps += d * eps;
        weights += weight;
      }
      store_lanes(g.dmu + m * g.dhead_ld + j, dz, lanes);
      store_lanes(g.dlogvar + m * g.dhead_ld + j, 0.5f * (sd * dz_eps + weights), lanes);
    });
  }
}

// Of log q(z|x) at z: dmu = s eps / sd, dlogvar = s (eps^2 - 1) / 2 with eps = (z - mu) / sd.
void dream_backward(const Latent& g, int begin, int end) {
  for (int m = begin; m < end; ++m) {
    const float *mu = g.mu + m * g.head_ld, *logvar = g.logvar + m * g.head_ld;
    for_vectors(g.latent_dim, [&](int j, int lanes) {
      V inverse_sd = exp(-0.5f * load_lanes(logvar + j, lanes));
      V eps = (load_lanes(g.z + m * g.z_ld + j, lanes) - load_lanes(mu + j, lanes)) * inverse_sd;
      store_lanes(g.dmu + m * g.dhead_ld + j, g.kl_scale * (eps * inverse_sd), lanes);
      store_lanes(g.dlogvar + m * g.dhead_ld + j, 0.5f * g.kl_scale * (eps * eps - 1.0f), lanes);
    });
  }
}
