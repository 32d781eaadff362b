// The GPU's own instructions, sm_80 and newer, each behind a small function. tests/cuda_host/host.hpp has their twins.
#pragma once

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")  // where more than one turn is the exception
// KERNEL waits for the launch before by itself; AHEAD_KERNEL does as much as it can before it waits. Registers are to
// leave room for 512 threads of a multiprocessor.
#define AHEAD_KERNEL(name, threads, Arguments) \
  extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) name(const __grid_constant__ Arguments args)
#define KERNEL(name, threads, Arguments)          \
  DEVICE void name##_body(const Arguments& args); \
  AHEAD_KERNEL(name, threads, Arguments) {        \
    wait_for_launch_before();                     \
    name##_body(args);                            \
  }                                               \
  DEVICE void name##_body(const Arguments& args)
#define SHARED_FLOATS(name) extern __shared__ __align__(16) float name[]

// Programmatic dependent launch, from sm_90 on. A kernel that is queued for it begins when every block of the launch
// before has waited here. Until a thread has waited itself, it may read what launches before that one have written, by
// `read_early`, and write nothing. Queued otherwise, it finds nothing to wait for.
DEVICE void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Past the multiprocessor's own cache, which may be older than the launches before.
template <typename T>
DEVICE T read_early(const T* p) {
  return __ldcg(p);
}

// One, two or four neighbours, aligned to as many; zeros where not `valid`. As read_early, and without a branch.
template <int N>
DEVICE void read_where(bool valid, const float* p, float* to) {
  static_assert(N == 1 || N == 2 || N == 4, "what one instruction reads");
  const int read = valid;
  UNROLL
  for (int n = 0; n < N; ++n) to[n] = 0.0f;
  if constexpr (N == 4)
    asm volatile("{.reg .pred q; setp.ne.s32 q, %4, 0; @q ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%5];}"
                 : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3])
                 : "r"(read), "l"(p));
  else if constexpr (N == 2)
    asm volatile("{.reg .pred q; setp.ne.s32 q, %2, 0; @q ld.global.cg.v2.f32 {%0, %1}, [%3];}"
                 : "+f"(to[0]), "+f"(to[1])
                 : "r"(read), "l"(p));
  else
    asm volatile("{.reg .pred q; setp.ne.s32 q, %1, 0; @q ld.global.cg.f32 %0, [%2];}"
                 : "+f"(to[0])
                 : "r"(read), "l"(p));
}
// The same written where `valid`.
template <int N>
DEVICE void write_where(bool valid, float* p, const float* v) {
  static_assert(N == 1 || N == 2 || N == 4, "what one instruction writes");
  const int write = valid;
  if constexpr (N == 4)
    asm volatile("{.reg .pred q; setp.ne.s32 q, %0, 0; @q st.global.v4.f32 [%1], {%2, %3, %4, %5};}" ::"r"(write),
                 "l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
  else if constexpr (N == 2)
    asm volatile("{.reg .pred q; setp.ne.s32 q, %0, 0; @q st.global.v2.f32 [%1], {%2, %3};}" ::"r"(write), "l"(p),
                 "f"(v[0]), "f"(v[1])
                 : "memory");
  else
    asm volatile("{.reg .pred q; setp.ne.s32 q, %0, 0; @q st.global.f32 [%1], %2;}" ::"r"(write), "l"(p), "f"(v[0])
                 : "memory");
}

DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
template <typename T>
DEVICE T shuffle_xor(T v, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, v, lane_mask);
}
DEVICE u32 bits(float v) { return __float_as_uint(v); }
DEVICE float from_bits(u32 v) { return __uint_as_float(v); }
// Work it out here: the compiler puts it off to where it is used, even behind a wait.
DEVICE void settle(float& v) { asm volatile("" : "+f"(v)); }
// Four of the eight bytes of a and b, a's lowest being 0: the lowest digit of `which` says the lowest byte.
DEVICE u32 pick_bytes(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float reciprocal_root(float v) { return rsqrtf(v); }
// sqrtf and a / b but for the last place; what overflows or is zero where b is tiny or vast is not looked after, so
// that neither branches.
DEVICE float root(float v) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEVICE float quotient(float a, float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  const float q = a * r;
  return __fmaf_rn(r, __fmaf_rn(-q, b, a), q);
}
DEVICE bool is_finite(double v) { return isfinite(v); }

// Copy 16 bytes to shared memory in the background, or zeros when not `valid`.
DEVICE void copy_async(float* shared, const float* from, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(shared))),
      "l"(from), "r"(valid ? 16 : 0)
      : "memory");
}
// Copy 16 or 4 bytes, aligned to as many.
template <int BYTES>
DEVICE void copy_bytes_async(u8* shared, const u8* from) {
  const u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most `pending` groups of this thread's copies are under way.
template <int pending>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Round to 10 bits of mantissa, ties away from zero; the result in the bits that mma reads.
DEVICE u32 to_tf32(float v) {
  u32 rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
  return rounded;
}
// Two bfloat16, rounded to nearest even, the first in the lower half.
DEVICE u32 to_bf16_pair(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// d += a b on a warp. With g = lane / 4 and t = lane % 4: a[0] is row g, a[1] row g + 8, of columns t (tf32), or 2t and
// 2t + 1 (bf16); a[2] and a[3] the same 4 (8) columns to the right. b[0] and b[1] likewise for column g of b. d[0] and
// d[1] are row g, columns 2t and 2t + 1; d[2] and d[3] row g + 8.
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
