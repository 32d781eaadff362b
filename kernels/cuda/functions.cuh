// Elementary functions to a few units in the last place, NaN passed on, and the activations.
//
// expf, log1pf, expm1f and tanhf are CUDA's, which are within two units.
#pragma once
#include "common.cuh"

DEVICE float relu(float a) { return a < 0.0f ? 0.0f : a; }  // fmaxf would drop NaN

// Both from one exponential e = exp(-|a|): sigmoid is 1 / (1 + e) or e / (1 + e); softplus is max(a, 0) + tail.
struct Logistic {
  float sigmoid, tail;
};
DEVICE Logistic logistic(float a) {
  float e = expf(-fabsf(a)), inverse = 1.0f / (1.0f + e);
  return {a < 0.0f ? e * inverse : inverse, log1pf(e)};
}
DEVICE float sigmoid(float a) {
  float e = expf(-fabsf(a)), inverse = 1.0f / (1.0f + e);
  return a < 0.0f ? e * inverse : inverse;
}
DEVICE float softplus(float a) { return relu(a) + log1pf(expf(-fabsf(a))); }

// exp(v) - 1 - v; for |v| < 1/2 as v^2 K(v), fit error 3.4e-10, free of the difference's cancellation.
DEVICE float exp_minus_1_minus(float v, float exp_v) {
  float p =
      (((((2.49570458e-5f * v + 1.99621849e-4f) * v + 1.38886075e-3f) * v + 8.33318196e-3f) * v + 4.16666679e-2f) * v +
       0.166666672f) *
          v +
      0.5f;
  return fabsf(v) < 0.5f ? v * v * p : exp_v - 1.0f - v;
}

DEVICE float activate(int activation, float a) {
  switch (activation) {
    case ACTIVATION_TANH: return tanhf(a);
    case ACTIVATION_RELU: return relu(a);
    case ACTIVATION_SOFTPLUS: return softplus(a);
    case ACTIVATION_SIGMOID: return sigmoid(a);
    default: return a;
  }
}
// The derivative, from the stored h.
DEVICE float slope(int activation, float h) {
  switch (activation) {
    case ACTIVATION_TANH: return 1.0f - h * h;
    case ACTIVATION_RELU: return h > 0.0f ? 1.0f : 0.0f;
    case ACTIVATION_SOFTPLUS: return -expm1f(-h);
    case ACTIVATION_SIGMOID: return h * (1.0f - h);
    default: return 1.0f;
  }
}
