// The sums over the minibatch, and whether the step is completed.
#pragma once
#include "common.cuh"

struct Statistics {
  const float *log_px, *kl;  // (terms,), whose sum is that of log p(x|z) over R rows; (kl_terms,) over kl_rows rows
  double* stats;             // (T, 2)
  const Step* steps;         // (T,)
  int terms, all_rows, kl_terms, kl_rows, kl_is_new;  // new: written by the launch before, as log_px is
  Loop* loop;
};

// Of a block's threads: each takes every THREADS-th four of terms in order and keeps four sums, which it adds in pairs;
// then `block_sum`. Several fours are on their way at once. p is aligned to 16 bytes, and so much of it may be read.
template <int THREADS>
DEVICE double sum_of_terms(const float* p, int count, double* scratch) {
  constexpr int AHEAD = 4, STEP = 4 * THREADS;
  double sums[4] = {};
  ROLLED
  for (int i0 = 4 * threadIdx.x; i0 < count; i0 += STEP * AHEAD) {
    float v[AHEAD][4];
    UNROLL
    for (int u = 0; u < AHEAD; ++u) read_where<4>(i0 + u * STEP < count, p + i0 + u * STEP, v[u]);
    UNROLL
    for (int u = 0; u < AHEAD; ++u) {
      UNROLL
      for (int i = 0; i < 4; ++i)
        if (i0 + u * STEP + i < count) sums[i] += static_cast<double>(v[u][i]);
    }
  }
  return block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
}

// By one block of THREADS threads, in float64 and a fixed order. Waits for the launch before, which writes log_px, and
// of the rest at most kl. `scratch` holds 64 floats.
template <int THREADS>
DEVICE void sum_statistics(const Statistics& args, float* scratch) {
  Loop& loop = *args.loop;
  double* doubles = reinterpret_cast<double*>(scratch);
  const i64 step = read_early(&loop.step);
  const bool over = step >= read_early(&loop.limit);
  auto sum_kl = [&](bool now) { return sum_of_terms<THREADS>(args.kl, now ? args.kl_terms : 0, doubles); };
  double kl = sum_kl(!over && !args.kl_is_new);
  const Step now = read_early_words(args.steps + (over ? 0 : step));
  wait_for_launch_before();
  if (over) {
    if (threadIdx.x == 0) loop.complete = 0;
    return;
  }
  if (args.kl_is_new) kl = sum_kl(true);
  kl /= args.kl_rows;
  const double log_px = sum_of_terms<THREADS>(args.log_px, args.terms, doubles) / args.all_rows;
  if (threadIdx.x) return;
  args.stats[2 * step] = log_px;
  args.stats[2 * step + 1] = kl;
  loop.complete = is_finite(log_px - kl);
  if (loop.complete)
    loop.now = now;
  else
    loop.limit = step;
}
