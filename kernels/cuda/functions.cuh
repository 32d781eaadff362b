// Elementary functions to a few units in the last place, NaN passed on, and the activations.
//
// expf, expm1f and tanhf are CUDA's, which are within two units. Whatever elements go through has no branch: the next
// one's work could not begin before it.
#pragma once
#include "common.cuh"

DEVICE float relu(float a) { return a < 0.0f ? 0.0f : a; }  // fmaxf would drop NaN

// log(1 + t) for -1/2 <= t <= 1 through 2 atanh(t / (2 + t)); fit error 6e-12.
DEVICE float log1p_small(float t) {
  float s = quotient(t, 2.0f + t), q = s * s;
  float p =
      ((((0.217923969f * q + 0.171478495f) * q + 0.22301501f) * q + 0.28568396f) * q + 0.400000542f) * q + 0.666666687f;
  return 2.0f * s + s * q * p;
}

// Both from one exponential e = exp(-|a|): sigmoid is 1 / (1 + e) or e / (1 + e); softplus is max(a, 0) + tail.
struct Logistic {
  float sigmoid, tail;
};
DEVICE Logistic logistic(float a) {
  float e = expf(-fabsf(a)), inverse = quotient(1.0f, 1.0f + e);
  return {a < 0.0f ? e * inverse : inverse, log1p_small(e)};
}
DEVICE float sigmoid(float a) {
  float e = expf(-fabsf(a)), inverse = quotient(1.0f, 1.0f + e);
  return a < 0.0f ? e * inverse : inverse;
}
DEVICE float softplus(float a) { return relu(a) + log1p_small(expf(-fabsf(a))); }

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

constexpr int ACTIVATIONS = ACTIVATION_SIGMOID + 1;
template <int N>
DEVICE void activate_all(int activation, float (&v)[N]) {
  with_constant<ACTIVATIONS>(activation, [&](auto f) {
    UNROLL
    for (int n = 0; n < N; ++n) v[n] = activate(f, v[n]);
  });
}
// v times the slope at h.
template <int N>
DEVICE void times_slope(int activation, float (&v)[N], const float (&h)[N]) {
  with_constant<ACTIVATIONS>(activation, [&](auto f) {
    UNROLL
    for (int n = 0; n < N; ++n) v[n] *= slope(f, h[n]);
  });
}
