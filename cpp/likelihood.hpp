// log p(x|z) and its gradient from the decoder's heads in one pass, rows of out.
//   bernoulli: sum x a - max(a, 0) - log1p(exp(-|a|)); gradient x - sigmoid(a)
//   gaussian:  -1/2 sum log(2 pi) + logvar + (x - mean)^2 / exp(logvar), logvar = floor + softplus(s - floor)
//
// And x ~ p(x|z): [u < sigmoid(a)], mean + exp(logvar / 2) n.
#pragma once

constexpr float log_two_pi = 1.83787707f;

// Of the W columns from d, those that there are.
inline int lanes_from(const Density& g, int d) {
  const int left = g.data_dim - d;
  return left < 0 ? 0 : left < W ? left : W;
}

// One panel of one row, columns from d: log p of its logits a; they become the gradient, zero in the padding.
inline float bernoulli_panel(const Density& g, const float* x, int d, V (&a)[vectors]) {
  V total = {};
  for (int v = 0; v < vectors; ++v, d += W) {
    const int lanes = lanes_from(g, d);
    V target = load_lanes(x + d, lanes);
    Logistic f = logistic(a[v]);
    V term = (target * a[v] - max(a[v], V{})) - f.tail;  // in this order the large parts cancel exactly when x is 1
    a[v] = g.scale * (target - f.sigmoid);
    if (lanes < W) term = keep(term, lanes), a[v] = keep(a[v], lanes);
    total += term;
  }
  return sum(total);
}

void bernoulli_row(const Density& g, const float* x, const float* out, float* dout, float& log_px) {
  log_px = 0;
  for (int d = 0; d < g.data_dim; d += panel) {
    V a[vectors];
    for (int v = 0; v < vectors; ++v) a[v] = load_lanes(out + d + v * W, lanes_from(g, d + v * W));
    log_px += bernoulli_panel(g, x, d, a);
    for (int v = 0; dout && v < vectors; ++v) store_lanes(dout + d + v * W, a[v], lanes_from(g, d + v * W));
  }
}

void gaussian_row(const Density& g, const float* x, const float* out, float* dout, float& log_px) {
  V total = {};
  int n = g.data_dim;
  for_vectors(n, [&](int d, int lanes) {
    V a = load_lanes(out + d, lanes), s = load_lanes(out + n + d, lanes) - g.logvar_floor;
    V mean = g.sigmoid_mean ? sigmoid(a) : a;
    Logistic f = logistic(s);
    V logvar = g.logvar_floor + (max(s, V{}) + f.tail), precision = exp(-logvar);
    V error = load_lanes(x + d, lanes) - mean;
    V square = error * error * precision;
    V term = log_two_pi + logvar + square;
    total += lanes < W ? keep(term, lanes) : term;
    if (dout) {
      V dmean = g.scale * error * precision;
      store_lanes(dout + d, g.sigmoid_mean ? dmean * (mean * (1.0f - mean)) : dmean, lanes);
      store_lanes(dout + n + d, 0.5f * g.scale * (square - 1.0f) * f.sigmoid, lanes);
    }
  });
  log_px = -0.5f * sum(total);
}

void likelihood(const Density& g, int begin, int end) {
  auto* row = g.likelihood == Likelihood::bernoulli ? bernoulli_row : gaussian_row;
  for (int r = begin; r < end; ++r)
    row(g, g.x + r % g.x_rows * g.x_ld, g.out + r * g.out_ld, g.dout ? g.dout + r * g.dout_ld : nullptr, g.log_px[r]);
}

void likelihood_mean(const Density& g, int begin, int end) {
  bool squash = g.likelihood == Likelihood::bernoulli || g.sigmoid_mean;
  for (int r = begin; r < end; ++r)
    for_vectors(g.data_dim, [&](int d, int lanes) {
      V a = load_lanes(g.out + r * g.out_ld + d, lanes);
      store_lanes(g.mean + r * g.mean_ld + d, squash ? sigmoid(a) : a, lanes);
    });
}

// Rows of D columns without padding, so that element r D + d of the noise is that of x.
void likelihood_sample(const Density& g, int begin, int end) {
  const int n = g.data_dim;
  if (g.likelihood == Likelihood::bernoulli) {
    likelihood_mean(g, begin, end);
    for (int r = begin; r < end; ++r)
      binarize_row(g.mean + r * g.mean_ld, n, g.seed, g.step, stream_dream, static_cast<long>(r) * n);
    return;
  }
  normal(g.seed, g.step, stream_dream, g.mean, static_cast<long>(begin) * n, static_cast<long>(end) * n);
  for (int r = begin; r < end; ++r) {
    const float* out = g.out + r * g.out_ld;
    float* x = g.mean + r * g.mean_ld;
    for_vectors(n, [&](int d, int lanes) {
      V a = load_lanes(out + d, lanes), s = load_lanes(out + n + d, lanes);
      V mean = g.sigmoid_mean ? sigmoid(a) : a, logvar = g.logvar_floor + softplus(s - g.logvar_floor);
      store_lanes(x + d, mean + exp(0.5f * logvar) * load_lanes(x + d, lanes), lanes);
    });
  }
}
