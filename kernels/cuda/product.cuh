// A tile of a matrix product C (I x J) = A (I x K) B (K x J) by one block, in the precision FASTVAE_PRECISION.
//
// Operands are float32 in memory. Tiles of DEPTH of K come to shared memory by cp.async, STAGES deep, as they are
// stored; they are rounded to tf32 or bf16, where that is the precision, on the way to the registers. An element's sum
// runs over K in order whatever the tile, so its bits depend on neither the tile nor the rows beside it.
#pragma once
#include "elements.cuh"

constexpr int DEPTH = 32;

// Rows, columns and threads of the tiles that kernels are made for.
#define SMALL 32, 32, 128
#define LARGE 64, 64, 256

// Where the block's tile begins, of a grid of them row by row.
template <int BM, int BN>
DEVICE Place tile_place(int tile, int columns) {
  const int column_tiles = (columns + BN - 1) / BN;
  return {tile / column_tiles * BM, tile % column_tiles * BN};
}

// What the products of this precision make of an operand.
DEVICE float rounded(float v) {
#if FASTVAE_PRECISION == BF16
  return from_bits(to_bf16_pair(0.0f, v) & 0xffff0000u);
#elif FASTVAE_PRECISION == TF32
  return from_bits(to_tf32(v));
#else
  return v;
#endif
}

template <int N>
DEVICE void round_all(float (&v)[N]) {
  UNROLL
  for (int n = 0; n < N; ++n) v[n] = rounded(v[n]);
}

// An operand in memory. ALONG: p[i * ld + k]; otherwise p[k * ld + i]. Of the dimension that is contiguous, whole
// groups of four are read: ld is a multiple of 4, p is aligned, and the rest of a row beyond its width is zero.
struct Operand {
  const float* p;
  i64 ld;
  int extent;  // of i
};

// ROWS x DEPTH of an operand in shared memory, laid out as in memory. The padding spreads the threads' reads over the
// banks: 16 bytes at 8 consecutive i (fp32), 16 bytes at 4 consecutive k of 2 i (mma), or 4 bytes at 8 consecutive i.
template <bool ALONG, int ROWS>
struct Tile {
  static constexpr int ld = ALONG ? DEPTH + (FASTVAE_PRECISION == FP32 ? 4 : 16) : ROWS + 4;
  static constexpr int floats = (ALONG ? ROWS : DEPTH) * ld;
  float* p;

  template <int THREADS>
  DEVICE void fetch(const Operand& from, int depth, int i0, int k0) const {
    constexpr int slow = ALONG ? ROWS : DEPTH, groups = (ALONG ? DEPTH : ROWS) / 4, step = THREADS / groups;
    static_assert(THREADS % groups == 0 && slow % step == 0, "every thread copies as many fours, below each other");
    const int s0 = static_cast<int>(threadIdx.x) / groups, f = static_cast<int>(threadIdx.x) % groups * 4;
    const int first = (ALONG ? i0 : k0) + s0, fast = (ALONG ? k0 : i0) + f;
    const int slow_end = ALONG ? from.extent : depth, fast_end = ALONG ? depth : from.extent;
    const float* source = from.p + first * from.ld + fast;
    UNROLL
    for (int s = 0; s < slow; s += step) {
      const bool valid = first + s < slow_end && fast < fast_end;
      copy_async(p + (s0 + s) * ld + f, valid ? source + s * from.ld : from.p, valid);
    }
  }

  // Elements k to k + 3 of row i.
  DEVICE float4 at(int i, int k) const {
    if constexpr (ALONG) {
      return *reinterpret_cast<const float4*>(p + i * ld + k);
    } else {
      const float* first = p + k * ld + i;
      return {first[0], first[ld], first[2 * ld], first[3 * ld]};
    }
  }
};

// Rows of bytes in shared memory, times a scale, over all of K.
struct ByteTile {
  const u8* p;
  int ld;  // a multiple of 4
  float scale;

  DEVICE float4 at(int i, int k) const {
    const u32 four = *reinterpret_cast<const u32*>(p + i * ld + k);
    // a byte below the exponent of 2^23 is 2^23 more than itself; the GPU converts integers at a quarter of that rate
    auto value = [&](u32 byte) { return (from_bits(pick_bytes(four, 0x4b000000u, 0x7440u + byte)) - 0x1p23f) * scale; };
    return {value(0), value(1), value(2), value(3)};
  }
};

// The operand of a product that is older than the launch before: weights are, beside activations and their gradients;
// the input of a layer is, beside the gradient of its output.
enum Early { EARLY_A, EARLY_B };

// BM x BN of C by THREADS threads. A_ALONG: A is stored with K contiguous; B_ALONG likewise.
template <int BM, int BN, int THREADS, bool A_ALONG, bool B_ALONG>
struct Product {
  typedef Tile<A_ALONG, BM> A;
  typedef Tile<B_ALONG, BN> B;
  static constexpr int stage_floats = A::floats + B::floats;
  static constexpr int STAGES =
      BM == 32 ? 5 : 3;  // where tiles are small, what counts is how many copies are under way

#if FASTVAE_PRECISION == FP32
  // Each thread has a grid of TM x TN elements, COLUMNS and BM / TM apart.
  static constexpr int TN = 4, COLUMNS = BN / TN, TM = BM * COLUMNS / THREADS;
  float c[TM][TN];

  template <typename TA, typename TB>
  DEVICE void multiply(const TA& a_tile, const TB& b_tile) {
    const int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    UNROLL
    for (int k = 0; k < DEPTH; k += 4) {
      float4 a[TM], b[TN];
      UNROLL
      for (int i = 0; i < TM; ++i) a[i] = a_tile.at(row + i * (BM / TM), k);
      UNROLL
      for (int j = 0; j < TN; ++j) b[j] = b_tile.at(column + j * COLUMNS, k);
      UNROLL
      for (int i = 0; i < TM; ++i) {
        UNROLL
        for (int j = 0; j < TN; ++j) {
          c[i][j] = multiply_add(a[i].x, b[j].x, c[i][j]);
          c[i][j] = multiply_add(a[i].y, b[j].y, c[i][j]);
          c[i][j] = multiply_add(a[i].z, b[j].z, c[i][j]);
          c[i][j] = multiply_add(a[i].w, b[j].w, c[i][j]);
        }
      }
    }
  }

  static constexpr int elements = TM * TN, NEIGHBOURS = 1;
  static DEVICE Place place_of(int e) {
    return {static_cast<int>(threadIdx.x) / COLUMNS + e / TN * (BM / TM),
            static_cast<int>(threadIdx.x) % COLUMNS + e % TN * COLUMNS};
  }
  DEVICE float& element(int e) { return c[e / TN][e % TN]; }
#else
  // Each warp has TM x TN fragments of 16 x 8; warps lie WARPS_N to a row of warps.
  static constexpr int TN = 2, WARPS_N = BN / (8 * TN), TM = BM * WARPS_N * 32 / (16 * THREADS);
  float c[TM][TN][4];

  // mma sums over columns t, t + 4, ... of a fragment; here lane t brings elements 4t to 4t + 3 of K, in A and B alike.
  template <typename TA, typename TB>
  DEVICE void multiply(const TA& a_tile, const TB& b_tile) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row = warp / WARPS_N * TM * 16 + g, column = warp % WARPS_N * TN * 8 + g;
    UNROLL
    for (int k = 0; k < DEPTH; k += 16) {
      float4 upper[TM], lower[TM], b[TN];
      UNROLL
      for (int i = 0; i < TM; ++i) {
        upper[i] = a_tile.at(row + 16 * i, k + 4 * t);
        lower[i] = a_tile.at(row + 16 * i + 8, k + 4 * t);
      }
      UNROLL
      for (int j = 0; j < TN; ++j) b[j] = b_tile.at(column + 8 * j, k + 4 * t);
      UNROLL
      for (int i = 0; i < TM; ++i) {
        UNROLL
        for (int j = 0; j < TN; ++j) multiply_fragment(c[i][j], upper[i], lower[i], b[j]);
      }
    }
  }

  static DEVICE void multiply_fragment(float (&d)[4], const float4& upper, const float4& lower, const float4& b) {
#if FASTVAE_PRECISION == BF16
    mma_bf16(d,
             {to_bf16_pair(upper.x, upper.y), to_bf16_pair(lower.x, lower.y), to_bf16_pair(upper.z, upper.w),
              to_bf16_pair(lower.z, lower.w)},
             {to_bf16_pair(b.x, b.y), to_bf16_pair(b.z, b.w)});
#else
    mma_tf32(d, {to_tf32(upper.x), to_tf32(lower.x), to_tf32(upper.y), to_tf32(lower.y)}, {to_tf32(b.x), to_tf32(b.y)});
    mma_tf32(d, {to_tf32(upper.z), to_tf32(lower.z), to_tf32(upper.w), to_tf32(lower.w)}, {to_tf32(b.z), to_tf32(b.w)});
#endif
  }

  static constexpr int elements = TM * TN * 4, NEIGHBOURS = 2;
  static DEVICE Place place_of(int e) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = e / 4 / TN, j = e / 4 % TN;
    return {warp / WARPS_N * TM * 16 + lane / 4 + 16 * i + e % 4 / 2 * 8,
            warp % WARPS_N * TN * 8 + lane % 4 * 2 + 8 * j + e % 2};
  }
  DEVICE float& element(int e) { return c[e / 4 / TN][e / 4 % TN][e % 4]; }
#endif

  // Whether what is needed beside the sums is to be read before they are made: where tiles are small, since it is
  // latency that counts there. Else it would take the registers of another block.
  static constexpr bool READ_AHEAD = BM == 32;

  // Add the tile at (i0, j0). `shared` holds STAGES * stage_floats; on_stage(a_tile, b_tile) sees each stage in order,
  // the rest of the last one zero. Of the operand `early`, which the launch before does not write, the first stages are
  // asked for before begin(), which waits for that launch. False where begin() says so, and then there is no product.
  template <typename Begin, typename F>
  DEVICE bool run(float* shared, const Operand& a, const Operand& b, int depth, int i0, int j0, Early early,
                  Begin begin, F on_stage) {
    auto fetch_a = [&](int slot, int k0) { A{shared + slot * stage_floats}.template fetch<THREADS>(a, depth, i0, k0); };
    auto fetch_b = [&](int slot, int k0) {
      B{shared + slot * stage_floats + A::floats}.template fetch<THREADS>(b, depth, j0, k0);
    };
    auto use = [&](int slot, int) {
      const A a_tile{shared + slot * stage_floats};
      const B b_tile{a_tile.p + A::floats};
      multiply(a_tile, b_tile);
      on_stage(a_tile, b_tile);
    };
    return early == EARLY_A ? pipeline(depth, fetch_a, begin, fetch_b, use)
                            : pipeline(depth, fetch_b, begin, fetch_a, use);
  }

  // The same with all of A's rows in shared memory already, or on the way; `shared` holds STAGES * B::floats.
  DEVICE void run(float* shared, const ByteTile& a, const Operand& b, int depth, int j0) {
    pipeline(
        depth, [](int, int) {}, [] { return true; },
        [&](int slot, int k0) { B{shared + slot * B::floats}.template fetch<THREADS>(b, depth, j0, k0); },
        [&](int slot, int k0) { multiply(ByteTile{a.p + k0, a.ld, a.scale}, B{shared + slot * B::floats}); });
  }

 private:
  // early(slot, k0) and late(slot, k0) ask for a stage, use(slot, k0) takes it STAGES - 1 stages later.
  template <typename AskEarly, typename Begin, typename AskLate, typename Use>
  DEVICE bool pipeline(int depth, AskEarly early, Begin begin, AskLate late, Use use) {
    const int stages = (depth + DEPTH - 1) / DEPTH;
    UNROLL
    for (int s = 0; s < STAGES - 1; ++s)
      if (s < stages) early(s, s * DEPTH);
    if (!begin()) {
      commit_copies();
      wait_copies<0>();
      return false;
    }
    // one group for each stage, also where there is nothing to fetch, so that counts agree
    UNROLL
    for (int s = 0; s < STAGES - 1; ++s) {
      if (s < stages) late(s, s * DEPTH);
      commit_copies();
    }
    int slot = 0, free_slot = STAGES - 1;
    for (int s = 0; s < stages; ++s) {
      wait_copies<STAGES - 2>();
      block_barrier();  // stage s is here, and nobody reads the slot of stage s - 1 any more
      const int next = s + STAGES - 1;
      if (next < stages) {
        early(free_slot, next * DEPTH);
        late(free_slot, next * DEPTH);
      }
      commit_copies();
      use(slot, s * DEPTH);
      free_slot = slot;
      if (++slot == STAGES) slot = 0;
    }
    return true;
  }
};
