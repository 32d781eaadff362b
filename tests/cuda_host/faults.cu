// Kernels with one fault each, which the scheduler must report.
#include "common.cuh"

struct Fault {
  float* out;
};

KERNEL(barrier_of_half_the_threads, 64, Fault) {
  if (threadIdx.x < 32) block_barrier();
  args.out[threadIdx.x] = 0.0f;
}

KERNEL(two_barriers, 64, Fault) {
  if (threadIdx.x < 32)
    block_barrier();
  else
    block_barrier();
  args.out[threadIdx.x] = 0.0f;
}

KERNEL(shuffle_of_half_a_warp, 32, Fault) {
  if (threadIdx.x < 16) args.out[threadIdx.x] = shuffle_xor(1.0f, 1);
}

KERNEL(shuffle_of_a_short_warp, 48, Fault) { args.out[threadIdx.x] = shuffle_xor(1.0f, 1); }

KERNEL(write_behind_shared_memory, 32, Fault) {
  SHARED_FLOATS(shared);
  shared[threadIdx.x + 1] = 0.0f;
  args.out[threadIdx.x] = 0.0f;
}

KERNEL(write_behind_an_array, 32, Fault) { args.out[32 + threadIdx.x] = 0.0f; }

KERNEL(neighbours_at_an_odd_place, 32, Fault) {
  const float v[2] = {0.0f, 0.0f};
  write_where<2>(threadIdx.x == 0, args.out + 1, v);
}

KERNEL(copies_without_a_wait, 32, Fault) {
  SHARED_FLOATS(shared);
  copy_async(shared, args.out, true);
  commit_copies();
}

// The last copies are still under way: what is read is not what was copied.
KERNEL(read_before_a_copy, 32, Fault) {
  SHARED_FLOATS(shared);
  if (threadIdx.x < 8) copy_async(shared + 4 * threadIdx.x, args.out + 4 * threadIdx.x, true);
  commit_copies();
  wait_copies<1>();
  block_barrier();
  float early = shared[threadIdx.x];
  block_barrier();
  wait_copies<0>();
  args.out[threadIdx.x] = early;
}

// Each thread reads its neighbour's number without a barrier: the order of the threads shows.
KERNEL(missing_barrier, 64, Fault) {
  SHARED_FLOATS(shared);
  shared[threadIdx.x] = 1.0f;
  args.out[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}

// Begins before the launch before, but does not wait for it.
AHEAD_KERNEL(no_wait_for_the_launch_before, 32, Fault) { args.out[threadIdx.x] = 0.0f; }

// One thread of a block waits where the others do not.
AHEAD_KERNEL(wait_of_half_the_threads, 64, Fault) {
  if (threadIdx.x < 32) wait_for_launch_before();
  block_barrier();
  if (threadIdx.x >= 32) wait_for_launch_before();
}

// Reads what the launch before writes.
AHEAD_KERNEL(read_too_early, 64, Fault) {
  const float v = read_early(args.out + threadIdx.x);
  wait_for_launch_before();
  args.out[threadIdx.x] = v + 1.0f;
}
