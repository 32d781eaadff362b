// The sums over the minibatch, and whether the step is completed.
#pragma once
#include "common.cuh"

struct Statistics {
  const float *log_px, *kl;  // (terms,), whose sum is that of log p(x|z) over R rows; (kl_terms,), M or sampled L M
  double* stats;             // (T, 2)
  const Step* steps;         // (T,)
  int terms, all_rows, kl_terms;
  Loop* loop;
};

// By one block of THREADS threads, in float64 and a fixed order. `scratch` holds 64 floats.
template <int THREADS>
DEVICE void sum_statistics(const Statistics& args, float* scratch) {
  Loop& loop = *args.loop;
  const i64 step = loop.step;
  if (forward_is_over(&loop)) {
    if (threadIdx.x == 0) loop.complete = 0;
    return;
  }
  double log_px = 0.0, kl = 0.0;
  for (int i = threadIdx.x; i < args.terms; i += THREADS) log_px += args.log_px[i];
  for (int i = threadIdx.x; i < args.kl_terms; i += THREADS) kl += args.kl[i];
  log_px = block_sum(log_px, reinterpret_cast<double*>(scratch)) / args.all_rows;
  kl = block_sum(kl, reinterpret_cast<double*>(scratch)) / args.kl_terms;
  if (threadIdx.x) return;
  args.stats[2 * step] = log_px;
  args.stats[2 * step + 1] = kl;
  loop.complete = is_finite(log_px - kl);
  if (loop.complete)
    loop.now = args.steps[step];
  else
    loop.limit = step;
}
