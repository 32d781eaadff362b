// One dimension of log p(x|z): its density and the derivatives by the decoder's heads.
#pragma once
#include "functions.cuh"

constexpr float LOG_TWO_PI = 1.83787707f;

struct Density {
  int gaussian, identity_mean;
  float logvar_floor;
  int data_dim;
};

struct Point {
  float log_px, dfirst, dsecond;  // derivatives by the logit; by the mean's and the log variance's head
};

DEVICE Point bernoulli(float x, float a) {
  Logistic f = logistic(a);
  // in this order the large parts cancel exactly when x is 1
  return {(x * a - relu(a)) - f.tail, x - f.sigmoid, 0.0f};
}

DEVICE Point gaussian(const Density& g, float x, float a, float s) {
  Logistic f = logistic(s - g.logvar_floor);
  float mean = g.identity_mean ? a : sigmoid(a);
  float logvar = g.logvar_floor + (relu(s - g.logvar_floor) + f.tail), precision = expf(-logvar);
  float error = x - mean, square = error * error * precision;
  float slope = g.identity_mean ? 1.0f : mean * (1.0f - mean);
  return {-0.5f * (LOG_TWO_PI + logvar + square), error * precision * slope, 0.5f * (square - 1.0f) * f.sigmoid};
}

DEVICE float gaussian_sample(const Density& g, float a, float s, float normal) {
  const float mean = g.identity_mean ? a : sigmoid(a), logvar = g.logvar_floor + softplus(s - g.logvar_floor);
  return mean + expf(0.5f * logvar) * normal;
}
