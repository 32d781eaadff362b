// Philox blocks of given counters, and the normals of a stream. Kernels: one thread per block of four words.
#include "philox.cuh"

struct Blocks {
  const u32 *counter, *key;  // [n][4], [2]
  u32* out;                  // [n][4]
  i64 n;
};
KERNEL(philox_blocks, 256, Blocks) {
  i64 i = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= args.n) return;
  const u32* c = args.counter + 4 * i;
  Words w = philox(args.key[0], args.key[1], c[0], c[1], c[2], c[3]);
  for (int word = 0; word < 4; ++word) args.out[4 * i + word] = w.word[word];
}

struct Normals {
  u64 seed, step;
  float* out;
  i64 n;
  u32 stream;
};
KERNEL(normals, 256, Normals) {
  i64 block = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  float values[4];
  normal_block(philox_block(args.seed, args.step, args.stream, static_cast<u32>(block)), values);
  for (int i = 0; i < 4; ++i)
    if (4 * block + i < args.n) args.out[4 * block + i] = values[i];
}
