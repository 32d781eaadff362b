// log p(x|z) and its gradient from the decoder's heads in one pass, rows of out.
//   bernoulli: sum x a - max(a, 0) - log1p(exp(-|a|)); gradient x - sigmoid(a)
//   gaussian:  -1/2 sum log(2 pi) + logvar + (x - mean)^2 / exp(logvar), logvar = floor + softplus(s - floor)
#pragma once

constexpr float log_two_pi = 1.83787707f;

void bernoulli_row(const Density& g, const float* x, const float* out, float* dout, float& log_px) {
  V total = {};
  for_vectors(g.data_dim, [&](int d, int lanes) {
    V target = load_lanes(x + d, lanes), a = load_lanes(out + d, lanes);
    Logistic f = logistic(a);
    V term = (target * a - max(a, V{})) - f.tail;  // in this order the large parts cancel exactly when x is 1
    total += lanes < W ? keep(term, lanes) : term;
    if (dout) store_lanes(dout + d, g.scale * (target - f.sigmoid), lanes);
  });
  log_px = sum(total);
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
