// A barrier of all blocks: what it costs. Header-free, see kernels/cuda/common.cuh.
//
// The counter is never set back: barrier r of a launch is over when it has come to base + r * blocks.

extern "C" __global__ void __launch_bounds__(256, 1)
    grid_barriers(unsigned* counter, unsigned base, int rounds, unsigned* failed) {
  __shared__ unsigned give_up;
  if (threadIdx.x == 0) give_up = 0;
  for (int r = 1; r <= rounds; ++r) {
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      const unsigned target = base + r * gridDim.x;
      unsigned seen;
      int spins = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (++spins > 1 << 16) give_up = 1;  // tens of milliseconds: a block is missing
      } while (static_cast<int>(seen - target) < 0 && !give_up);
    }
    __syncthreads();
    if (give_up) break;
  }
  if (threadIdx.x == 0 && give_up) *failed = 1;
}
