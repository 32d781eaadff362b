// Twins of ptx.cuh on the CPU: the threads of a block are fibers, one block runs at a time.
//
// A fiber runs until it waits: at a barrier of the block, in an operation of its warp, which the last lane to arrive
// carries out for all, or for the launch before, as whose first blocks begin its own first threads may have begun. What
// cannot be seen here: races within one fiber's turn, the memory's ordering, the tensor cores' own rounding, occupancy,
// speed. What is checked: every thread of a block reaches the same barriers, every lane of a warp the same warp
// operations; nothing is written beyond shared memory; asynchronous copies are waited for.
#pragma once
#include <math.h>

#include <cmath>
#include <cstring>

struct Index {  // grids and blocks are rows
  unsigned x;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

void barrier(int line);
void wait_for_launch_before();
// Arrive with the lane's operands; the last of the 32 lanes calls `together` on those of all, in lane order.
typedef void (*Together)(void* const lanes[32]);
void warp_together(Together together, void* mine, int line);
float* shared_memory();
void copy_async(void* shared, const void* from, bool valid, int bytes);
void commit_copies();
void wait_copies(int pending);
void check_alignment(const float* p, int neighbours);

// A kernel's entry in the library: its arguments' size, its threads, whether it begins ahead of the launch before, and
// a call with arguments given by address.
struct Entry {
  long arguments_size;
  int threads;
  bool ahead;
  void (*run)(const void* arguments);
};

}  // namespace host

#define DEVICE inline
#define UNROLL
#define ROLLED
#define KERNEL_OF(name, threads, Arguments, ahead)                                                \
  static void name##_body(const Arguments& args);                                                 \
  static void name##_run(const void* args) { name##_body(*static_cast<const Arguments*>(args)); } \
  extern "C" __attribute__((visibility("default"), used))                                         \
  const host::Entry entry_##name = {sizeof(Arguments), threads, ahead, name##_run};               \
  static void name##_body(const Arguments& args)
#define KERNEL(name, threads, Arguments) KERNEL_OF(name, threads, Arguments, false)
#define AHEAD_KERNEL(name, threads, Arguments) KERNEL_OF(name, threads, Arguments, true)
#define SHARED_FLOATS(name) float* name = host::shared_memory()

#define block_barrier() host::barrier(__LINE__)
DEVICE void wait_for_launch_before() { host::wait_for_launch_before(); }
template <typename T>
T read_early(const T* p) {
  return *p;
}

template <int N>
void read_where(bool valid, const float* p, float* to) {
  if (valid) host::check_alignment(p, N);
  for (int n = 0; n < N; ++n) to[n] = valid ? p[n] : 0.0f;
}
template <int N>
void write_where(bool valid, float* p, const float* v) {
  if (valid) host::check_alignment(p, N);
  for (int n = 0; valid && n < N; ++n) p[n] = v[n];
}

template <typename T>
T shuffle_xor(T v, int lane_mask) {
  struct Lane {
    T value, result;
    int mask;
  } lane = {v, v, lane_mask};
  host::warp_together(
      [](void* const lanes[32]) {
        for (int i = 0; i < 32; ++i) {
          Lane& to = *static_cast<Lane*>(lanes[i]);
          to.result = static_cast<Lane*>(lanes[i ^ to.mask])->value;
        }
      },
      &lane, __LINE__);
  return lane.result;
}

DEVICE void warp_barrier_at(int line) {
  host::warp_together([](void* const[32]) {}, nullptr, line);
}
#define warp_barrier() warp_barrier_at(__LINE__)

DEVICE u32 bits(float v) {
  u32 b;
  std::memcpy(&b, &v, sizeof b);
  return b;
}
DEVICE float from_bits(u32 b) {
  float v;
  std::memcpy(&v, &b, sizeof v);
  return v;
}
DEVICE void settle(float&) {}
DEVICE u32 pick_bytes(u32 a, u32 b, u32 which) {
  u32 picked = 0;
  for (int i = 0; i < 4; ++i) picked |= (((static_cast<u64>(b) << 32 | a) >> 8 * (which >> 4 * i & 7)) & 255u) << 8 * i;
  return picked;
}
DEVICE u32 multiply_high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }
DEVICE float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float reciprocal_root(float v) { return 1.0f / sqrtf(v); }
// The device's approximations may be a unit off, so these are, one way or the other.
DEVICE float one_off(float v) { return std::nextafterf(v, bits(v) >> 3 & 1u ? 0.0f : INFINITY); }
DEVICE float root(float v) { return v > 0.0f ? one_off(sqrtf(v)) : sqrtf(v); }
DEVICE float quotient(float a, float b) {
  const float r = one_off(1.0f / b), q = a * r;
  return std::fma(r, std::fma(-q, b, a), q);
}
DEVICE bool is_finite(double v) { return std::isfinite(v); }

DEVICE void copy_async(float* shared, const float* from, bool valid) { host::copy_async(shared, from, valid, 16); }
template <int BYTES>
void copy_bytes_async(u8* shared, const u8* from) {
  host::copy_async(shared, from, true, BYTES);
}
DEVICE void commit_copies() { host::commit_copies(); }
template <int pending>
void wait_copies() {
  host::wait_copies(pending);
}

DEVICE u32 to_tf32(float v) {
  if (v != v) return 0x7fffffffu;
  u32 b = bits(v);
  return (b & 0x7f800000u) == 0x7f800000u ? b : (b + 0x1000u) & 0xffffe000u;
}
DEVICE u32 to_bf16(float v) {
  if (v != v) return 0x7fffu;
  u32 b = bits(v);
  return (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}
DEVICE u32 to_bf16_pair(float low, float high) { return to_bf16(high) << 16 | to_bf16(low); }

// Operands of one lane, and the whole product from those of all, element by element in the order of K.
struct Fragments {
  float* d;
  const u32 *a, *b;
};
template <int PER_WORD>
void mma_together(void* const lanes[32]) {
  constexpr int K = 8 * PER_WORD;
  float a[16][K], b[K][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& f = *static_cast<const Fragments*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int word = 0; word < 4; ++word)
      for (int e = 0; e < PER_WORD; ++e) {
        const int shift = PER_WORD == 2 ? 16 * (1 - e) : 0, k = (word / 2 * 4 + t) * PER_WORD + e;
        const u32 mask = PER_WORD == 2 ? 0xffff0000u : 0xffffe000u;
        a[g + word % 2 * 8][k] = from_bits(f.a[word] << shift & mask);
        if (word % 2 == 0) b[k][g] = from_bits(f.b[word / 2] << shift & mask);
      }
  }
  for (int i = 0; i < 16; ++i) {
    float row[8];
    for (int j = 0; j < 8; ++j) row[j] = static_cast<const Fragments*>(lanes[i % 8 * 4 + j / 2])->d[i / 8 * 2 + j % 2];
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < 8; ++j) row[j] += a[i][k] * b[k][j];
    for (int j = 0; j < 8; ++j) static_cast<const Fragments*>(lanes[i % 8 * 4 + j / 2])->d[i / 8 * 2 + j % 2] = row[j];
  }
}
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  Fragments mine = {d, a, b};
  host::warp_together(mma_together<1>, &mine, __LINE__);
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  Fragments mine = {d, a, b};
  host::warp_together(mma_together<2>, &mine, __LINE__);
}
