// Types, the state of the fused loop, and reductions. Header-free: NVRTC ships no standard headers.
//
// Everything that is an instruction of the GPU rather than C++ lies in ptx.cuh behind small functions. The tests
// compile the same kernels for the CPU with FASTVAE_HOST and host.hpp in its place.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define FP32 0
#define TF32 1
#define BF16 2

#ifdef FASTVAE_HOST
#include "host.hpp"
#else
#include "ptx.cuh"
#endif

enum Activation { ACTIVATION_NONE, ACTIVATION_TANH, ACTIVATION_RELU, ACTIVATION_SOFTPLUS, ACTIVATION_SIGMOID };
enum Rule { RULE_ADAGRAD, RULE_ADAM, RULE_SGD, RULE_HOLD };  // HOLD gathers Adagrad's squares and moves nothing
// fastvae/rng.py
enum Stream {
  STREAM_LATENT = 0,
  STREAM_BINARIZE = 1,
  STREAM_BINARIZE_FIXED = 2,
  STREAM_DREAM_LATENT = 7,
  STREAM_DREAM = 8
};

// Constants of one optimizer step, worked out by the caller; gain = 1 - beta, not rounded twice.
struct Update {
  int rule;
  float rate, momentum, beta1, gain1, beta2, gain2, root_scale, epsilon, decay;
};

// Constants of one step of the fused loop: its number since training began, the KL divergence's weight / its terms.
struct Step {
  u64 number;
  float kl_scale;
  Update update;
};

// Where the fused loop stands, in device memory. Of a step, the phases up to the likelihood read `step`; `statistics`
// decides whether it is to be completed and copies its constants; the phases behind read those. latent_backward, or
// dream_backward, then counts it. So no word is written by a kernel that another block of it reads.
struct Loop {
  i64 step, limit;  // of this call, from 0; the steps that may be made
  u64 first;        // number of step 0
  int complete;
  Step now;
};

DEVICE bool forward_is_over(const Loop* loop) { return loop && loop->step >= loop->limit; }
DEVICE bool backward_is_over(const Loop* loop) { return loop && !loop->complete; }
// Of a kernel that has begun ahead: wait, and say whether there is a step to be made. What moved the loop on to the
// forward's step was not the launch before, since weight_gradients lies between. What ended it may be, where wake-sleep
// encodes its dream behind the statistics: then what is computed here is of no use, and of no harm.
DEVICE bool forward_goes_on(const Loop* loop) {
  const bool over = loop && read_early(&loop->step) >= read_early(&loop->limit);
  wait_for_launch_before();
  return !over;
}
DEVICE bool backward_goes_on(const Loop* loop) {
  wait_for_launch_before();
  return !backward_is_over(loop);
}

// Rows of ld floats. In the engine's own memory ld is a multiple of 16 and columns beyond the width are zero.
struct Matrix {
  float* p;
  i64 ld;
};

// p[at], or zero where not `valid`.
DEVICE float early_at(const float* p, i64 at, bool valid) {
  float v;
  read_where<1>(valid, p + at, &v);
  return v;
}

// Word by word.
template <typename T>
DEVICE T read_early_words(const T* p) {
  static_assert(sizeof(T) % sizeof(u32) == 0, "whole words");
  union Words {
    u32 word[sizeof(T) / sizeof(u32)];
    T whole;
    DEVICE Words() {}
  } v;
  UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(T) / sizeof(u32)); ++i)
    v.word[i] = read_early(reinterpret_cast<const u32*>(p) + i);
  return v.whole;
}

// f of a number below COUNT as a constant: what is chosen by it is chosen once, and not for each element of a loop in
// f.
template <int N>
struct Constant {
  DEVICE constexpr operator int() const { return N; }
};
template <int COUNT, int N = 0, typename F>
DEVICE void with_constant(int value, F f) {
  if constexpr (N + 1 < COUNT)
    if (value != N) return with_constant<COUNT, N + 1>(value, f);
  f(Constant<N>());
}

template <typename T>
DEVICE T warp_sum(T v) {
  for (int distance = 16; distance; distance /= 2) v += shuffle_xor(v, distance);
  return v;
}

// The sums of N values over LANES neighbouring lanes, the i-th in the i-th of N groups of them: each step leaves a lane
// half of the values.
template <int LANES, int N>
DEVICE float scattered_sum(const float (&v)[N]) {
  if constexpr (N > 1) {
    const bool upper = threadIdx.x & (LANES / 2);
    float half[N / 2];
    UNROLL
    for (int i = 0; i < N / 2; ++i)
      half[i] = (upper ? v[N / 2 + i] : v[i]) + shuffle_xor(upper ? v[i] : v[N / 2 + i], LANES / 2);
    return scattered_sum<LANES / 2>(half);
  } else {
    float sum = v[0];
    UNROLL
    for (int distance = LANES / 2; distance; distance /= 2) sum += shuffle_xor(sum, distance);
    return sum;
  }
}

// The sum over a block, the same bits in every thread. `scratch` holds 32 of them.
template <typename T>
DEVICE T block_sum(T v, T* scratch) {
  v = warp_sum(v);
  block_barrier();  // scratch may still be read from the sum before
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  block_barrier();
  T total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x + 31) / 32; ++warp) total += scratch[warp];
  return total;
}
