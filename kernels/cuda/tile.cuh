// A part of an operand in shared memory: how it gets there, and how it is read.
#pragma once
#include "common.cuh"

constexpr int DEPTH = 32;  // of K

// An operand in memory. ALONG: p[i * ld + k]; otherwise p[k * ld + i]. Of the dimension that is contiguous, whole
// groups of four are read: ld is a multiple of 4, p is aligned, and the rest of a row beyond its width is zero.
struct Operand {
  const float* p;
  i64 ld;
  int extent;  // of i
};

// ROWS x DEPTH of an operand, fours in rows as in memory. Within a row fours change places, so that what threads read
// together lies in different banks: fours of 8 consecutive i (fp32) or of 4 consecutive k and 2 i (mma), or, of rows
// along i, one at 8 consecutive i and 4 k that are 4 apart (mma).
template <bool ALONG, int ROWS>
struct Tile {
  static constexpr int slow = ALONG ? ROWS : DEPTH, fast = ALONG ? DEPTH : ROWS, floats = ROWS * DEPTH;
  float* p;

  // Where the four begins that holds column f, a multiple of four, of row s.
  static DEVICE int place(int s, int f) {
#if FASTVAE_PRECISION == FP32
    const int moved = ALONG ? (s & 7) << 2 : 0;
#else
    const int moved = ALONG ? (s & 1) << 4 : (s >> 2 & 3) << 3;
#endif
    return s * fast + (f ^ moved);
  }

  // Copies of one thread of a GROUP that fetches one tile after another, `stride` of K apart.
  template <int GROUP>
  struct Source {
    static constexpr int fours = fast / 4, STEP = GROUP / fours;
    static_assert(GROUP % fours == 0 && slow % STEP == 0, "every thread copies as many fours, STEP rows apart");
    const float* p;
    i64 row, tile;      // from copy to copy, from tile to tile
    int s, f;           // of the first copy in its tile
    int rows, columns;  // of what is left from here on

    DEVICE Source(const Operand& from, int depth, int i0, int k0, int stride, int thread) {
      s = thread / fours, f = thread % fours * 4;
      p = from.p + ((ALONG ? i0 : k0) + s) * from.ld + (ALONG ? k0 : i0) + f;
      row = STEP * from.ld, tile = ALONG ? static_cast<i64>(stride) : stride * from.ld;
      rows = (ALONG ? from.extent - i0 : depth - k0) - s;
      columns = (ALONG ? depth - k0 : from.extent - i0) - f;
    }
    // Ask for the next tile; where there is nothing of the operand it is zero.
    DEVICE void fetch(float* to, int stride) {
      UNROLL
      for (int n = 0; n < slow / STEP; ++n)
        copy_async(to + place(s + n * STEP, f), p + n * row, n * STEP < rows && columns > 0);
      p += tile;
      (ALONG ? columns : rows) -= stride;
    }
  };

  // Elements k to k + 3 of row i, k a multiple of four.
  DEVICE float4 at(int i, int k) const {
    if constexpr (ALONG) {
      return *reinterpret_cast<const float4*>(p + place(i, k));
    } else {
      const float* first = p + place(k, i & ~3) + (i & 3);  // the four rows have their fours in the same order
      return {first[0], first[fast], first[2 * fast], first[3 * fast]};
    }
  }
  // Rows i to i + N - 1 at k, of rows along i; i is a multiple of N, 2 or 4.
  template <int N>
  DEVICE void rows_at(int i, int k, float (&v)[N]) const {
    const float* first = p + place(k, i & ~3) + (i & 3);
    if constexpr (N == 4) {
      const float4 four = *reinterpret_cast<const float4*>(first);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
      UNROLL
      for (int n = 0; n < N; ++n) v[n] = first[n];
    }
  }
};
