// A tile of a matrix product C (I x J) = A (I x K) B (K x J) by one block, in the precision FASTVAE_PRECISION.
//
// Operands are float32 in memory. Tiles of DEPTH of K come to shared memory by cp.async, STAGES deep, as they are
// stored; they are rounded to tf32 or bf16, where that is the precision, on the way to the registers. A group of
// threads sums its part of K in order. One group is all of a block's threads: then an element's bits depend on neither
// the tile nor the rows beside it. Or every warp is one: the warps take turns along K, wait for nobody else on the way,
// and add up at the end, warp by warp.
#pragma once
#include "elements.cuh"
#include "tile.cuh"

// Rows, columns, threads of a group and groups, of the tiles that kernels are made for. SPLIT is for few rows, where a
// step is latency; in fp32 it is arithmetic too, and half as many rows give work to twice as many multiprocessors.
#define SMALL 32, 32, 128, 1
#define LARGE 64, 64, 256, 1
#if FASTVAE_PRECISION == FP32
#define SPLIT 16, 32, 32, 4
#else
#define SPLIT 32, 32, 32, 4
#endif

// The block's tile, of a grid of them row by row: where it begins.
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

// The sums of BM x BN of C that a thread of a GROUP holds. A_ALONG: A is stored with K contiguous; B_ALONG likewise.
template <int BM, int BN, int GROUP, bool A_ALONG, bool B_ALONG>
struct Sums {
#if FASTVAE_PRECISION == FP32
  // A grid of TM x TN; side by side where the operand's rows are along them, else as far apart as they can be.
  static constexpr int TN = 4, COLUMNS = BN / TN, TM = BM * COLUMNS / GROUP, elements = TM * TN;
  static constexpr int NEIGHBOURS = B_ALONG ? 1 : TN;
  static constexpr int NEAR = TM < 4 ? TM : 4;  // rows that are read together, of rows along them
  float c[TM][TN];

  static DEVICE int row_of(int i, int thread) {
    const int row = thread / COLUMNS;
    return A_ALONG ? row + i * (BM / TM) : (row + i / NEAR * (BM / TM)) * NEAR + i % NEAR;
  }
  static DEVICE int column_of(int j, int thread) {
    const int column = thread % COLUMNS;
    return B_ALONG ? column + j * COLUMNS : column * TN + j;
  }
  static DEVICE Place place_of(int e, int thread) { return {row_of(e / TN, thread), column_of(e % TN, thread)}; }
  DEVICE float& element(int e) { return c[e / TN][e % TN]; }

  template <typename TA, typename TB>
  DEVICE void multiply(const TA& a_tile, const TB& b_tile, int thread) {
    UNROLL
    for (int k = 0; k < DEPTH; k += 4) {
      float a[TM][4], b[TN][4];
      if constexpr (A_ALONG) {
        UNROLL
        for (int i = 0; i < TM; ++i) spread(a_tile.at(row_of(i, thread), k), a[i]);
      } else {
        UNROLL
        for (int n = 0; n < 4; ++n) {
          UNROLL
          for (int i = 0; i < TM; i += NEAR) {
            float v[NEAR];
            a_tile.rows_at(row_of(i, thread), k + n, v);
            UNROLL
            for (int m = 0; m < NEAR; ++m) a[i + m][n] = v[m];
          }
        }
      }
      if constexpr (B_ALONG) {
        UNROLL
        for (int j = 0; j < TN; ++j) spread(b_tile.at(column_of(j, thread), k), b[j]);
      } else {
        UNROLL
        for (int n = 0; n < 4; ++n) {
          float v[TN];
          b_tile.rows_at(column_of(0, thread), k + n, v);
          UNROLL
          for (int j = 0; j < TN; ++j) b[j][n] = v[j];
        }
      }
      UNROLL
      for (int n = 0; n < 4; ++n) {
        UNROLL
        for (int i = 0; i < TM; ++i) {
          UNROLL
          for (int j = 0; j < TN; ++j) c[i][j] = multiply_add(a[i][n], b[j][n], c[i][j]);
        }
      }
    }
  }
  static DEVICE void spread(const float4& four, float (&v)[4]) {
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  }
#else
  // A warp has TM x TN fragments of 16 x 8; warps lie WARPS_N to a row of warps.
  static constexpr int WARPS = GROUP / 32, TN = WARPS == 1 ? BN / 8 : 2, WARPS_N = BN / (8 * TN);
  static constexpr int TM = BM * WARPS_N / (16 * WARPS), elements = TM * TN * 4, NEIGHBOURS = 2;
  float c[TM][TN][4];

  static DEVICE Place place_of(int e, int thread) {
    const int lane = thread % 32, warp = thread / 32, i = e / 4 / TN, j = e / 4 % TN;
    return {warp / WARPS_N * TM * 16 + lane / 4 + 16 * i + e % 4 / 2 * 8,
            warp % WARPS_N * TN * 8 + lane % 4 * 2 + 8 * j + e % 2};
  }
  DEVICE float& element(int e) { return c[e / 4 / TN][e / 4 % TN][e % 4]; }

  // mma sums over columns t, t + 4, ... of a fragment; here lane t brings elements 4t to 4t + 3 of K, in A and B alike.
  template <typename TA, typename TB>
  DEVICE void multiply(const TA& a_tile, const TB& b_tile, int thread) {
    const int lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
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
#endif
};

// BM x BN of C by GROUPS groups of GROUP threads.
template <int BM, int BN, int GROUP, int GROUPS, bool A_ALONG, bool B_ALONG>
struct Product {
  typedef Tile<A_ALONG, BM> A;
  typedef Tile<B_ALONG, BN> B;
  typedef Sums<BM, BN, GROUP, A_ALONG, B_ALONG> GroupSums;
  static_assert(GROUPS == 1 || GROUP == 32, "a part of a block that waits for itself is a warp");
  // Where tiles are small, what counts is how many copies are under way.
  static constexpr int STAGES = BM <= 32 && GROUPS == 1 ? 5 : 3, STRIDE = GROUPS * DEPTH;
  static constexpr int stage_floats = A::floats + B::floats;
  static constexpr int elements = BM * BN / (GROUP * GROUPS);  // of a thread, at the end
  static constexpr int NEIGHBOURS = GROUPS == 1 ? GroupSums::NEIGHBOURS : elements < 4 ? elements : 4;
  GroupSums sums;
  float own[GROUPS > 1 ? elements : 1];  // where groups add up

  static DEVICE Place place_of(int e) {
    if constexpr (GROUPS == 1) return GroupSums::place_of(e, threadIdx.x);
    constexpr int across = BN / NEIGHBOURS;
    return {static_cast<int>(threadIdx.x) / across + e / NEIGHBOURS * (GROUP * GROUPS / across),
            static_cast<int>(threadIdx.x) % across * NEIGHBOURS + e % NEIGHBOURS};
  }
  DEVICE float& element(int e) {
    if constexpr (GROUPS == 1) return sums.element(e);
    return own[e];
  }

  // Whether what is needed beside the sums is to be read before they are made: where tiles are small, since it is
  // latency that counts there. Else it would take the registers of another block.
  static constexpr bool READ_AHEAD = BM <= 32;

  // Add the tile at (i0, j0). `shared` holds GROUPS * STAGES * stage_floats; on_stage(b_tile) sees each stage in order
  // of one group, the rest of the last one zero. Of the operand `early`, which the launch before does not write, the
  // first stages are asked for before begin(), which waits for that launch. False where begin() says so, and then there
  // is no product.
  template <typename Begin, typename F>
  DEVICE bool run(float* shared, const Operand& a, const Operand& b, int depth, int i0, int j0, Early early,
                  Begin begin, F on_stage) {
    typename A::template Source<GROUP> a_source(a, depth, i0, first_k(), STRIDE, thread());
    typename B::template Source<GROUP> b_source(b, depth, j0, first_k(), STRIDE, thread());
    float* mine = shared + group() * STAGES * stage_floats;
    auto fetch_a = [&](int slot) { a_source.fetch(mine + slot * stage_floats, STRIDE); };
    auto fetch_b = [&](int slot) { b_source.fetch(mine + slot * stage_floats + A::floats, STRIDE); };
    auto use = [&](int slot, int) {
      const A a_tile{mine + slot * stage_floats};
      const B b_tile{a_tile.p + A::floats};
      sums.multiply(a_tile, b_tile, thread());
      on_stage(b_tile);
    };
    const bool goes_on = early == EARLY_A ? pipeline<false>(depth, fetch_a, begin, fetch_b, use)
                                          : pipeline<false>(depth, fetch_b, begin, fetch_a, use);
    if (goes_on) add_up(shared);
    return goes_on;
  }

  // The same with all of A's rows in shared memory already, or on the way; `shared` holds GROUPS * STAGES * B::floats.
  DEVICE void run(float* shared, const ByteTile& a, const Operand& b, int depth, int j0) {
    typename B::template Source<GROUP> b_source(b, depth, j0, first_k(), STRIDE, thread());
    float* mine = shared + group() * STAGES * B::floats;
    pipeline<true>(
        depth, [](int) {}, [] { return true; }, [&](int slot) { b_source.fetch(mine + slot * B::floats, STRIDE); },
        [&](int slot, int k) {
          sums.multiply(ByteTile{a.p + k, a.ld, a.scale}, B{mine + slot * B::floats}, thread());
        });
    add_up(shared);
  }

 private:
  static DEVICE int thread() { return threadIdx.x % GROUP; }
  static DEVICE int group() { return GROUPS == 1 ? 0 : threadIdx.x / GROUP; }
  static DEVICE int first_k() { return group() * DEPTH; }
  static DEVICE void group_barrier() {
    if constexpr (GROUPS == 1)
      block_barrier();
    else
      warp_barrier();
  }

  // early(slot) and late(slot) ask for the group's next stage, use(slot, k) takes it STAGES - 1 stages later.
  // IN_COMMON: copies asked for before are read by every group.
  template <bool IN_COMMON, typename AskEarly, typename Begin, typename AskLate, typename Use>
  DEVICE bool pipeline(int depth, AskEarly early, Begin begin, AskLate late, Use use) {
    UNROLL
    for (int s = 0; s < STAGES - 1; ++s)
      if (first_k() + s * STRIDE < depth) early(s);
    if (!begin()) {
      commit_copies();
      wait_copies<0>();
      return false;
    }
    if constexpr (GROUPS > 1) {
      UNROLL
      for (int e = 0; e < GroupSums::elements; ++e) sums.element(e) = 0.0f;
    }
    // one group of copies for each stage, also where there is nothing to fetch, so that counts agree
    UNROLL
    for (int s = 0; s < STAGES - 1; ++s) {
      if (first_k() + s * STRIDE < depth) late(s);
      commit_copies();
    }
    if constexpr (IN_COMMON && GROUPS > 1) {
      wait_copies<STAGES - 1>();
      block_barrier();
    }
    int slot = 0, free_slot = STAGES - 1;
    for (int k = first_k(); k < depth; k += STRIDE) {
      wait_copies<STAGES - 2>();
      group_barrier();  // this stage is here, and nobody reads the slot of the one before any more
      if (k + (STAGES - 1) * STRIDE < depth) {
        early(free_slot);
        late(free_slot);
      }
      commit_copies();
      use(slot, k);
      free_slot = slot;
      if (++slot == STAGES) slot = 0;
    }
    return true;
  }

  // Add the groups' sums, in their order, to what this thread holds of them.
  DEVICE void add_up(float* shared) {
    if constexpr (GROUPS > 1) {
      constexpr int ld = BN + 8;  // rows that are written together lie in different banks
      static_assert(BM * ld <= STAGES * B::floats, "there is room for a group's sums where its stages were");
      wait_copies<0>();
      block_barrier();
      UNROLL
      for (int e = 0; e < GroupSums::elements; ++e) {
        const Place at = GroupSums::place_of(e, thread());
        shared[(group() * BM + at.i) * ld + at.j] = sums.element(e);
      }
      block_barrier();
      struct alignas(4 * NEIGHBOURS) Neighbours {
        float v[NEIGHBOURS];
      };
      UNROLL
      for (int e = 0; e < elements; e += NEIGHBOURS) {
        UNROLL
        for (int g = 0; g < GROUPS; ++g) {
          const float* from = shared + (g * BM + place_of(e).i) * ld + place_of(e).j;
          const Neighbours more = *reinterpret_cast<const Neighbours*>(from);
          UNROLL
          for (int n = 0; n < NEIGHBOURS; ++n) own[e + n] += more.v[n];
        }
      }
    }
  }
};
