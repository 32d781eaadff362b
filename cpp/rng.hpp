// Philox4x32-10 streams, as fastvae/rng.py defines them: key = seed, counter = (word / 4, step low, step high, stream).
#pragma once

typedef uint64_t VL __attribute__((vector_size(4 * W)));
typedef uint32_t VS __attribute__((vector_size(2 * W)));  // the low halves of a VL

// (a mod 2^32) b in each lane. By name, since GCC multiplies whole lanes of 64 bits; the product of halves makes
// normals in 0.6 to 0.75 of the time on x86-64, and the keys of an order in a sixth to a half.
inline VL multiply_low(VL a, uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<VL>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<VL>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<VL>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(b)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<VL>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), vdup_n_u32(b)));
#else
  return (a & uint64_t{0xFFFFFFFF}) * uint64_t{b};
#endif
}

// Blocks [block, block + W) of a stream, word by word: out[i][l] is word i of block `block + l`. A word is the low half
// of a lane; what the high half gathers is never read.
inline void philox_blocks(uint64_t seed, uint64_t step, uint32_t stream, uint32_t block, uint32_t out[4][W]) {
  for (int first = 0; first < W; first += W / 2) {
    VL c0, c1 = VL{} + step, c2 = VL{} + (step >> 32), c3 = VL{} + uint64_t{stream};
    for (int l = 0; l < W / 2; ++l) c0[l] = block + static_cast<uint64_t>(first + l);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      VL p0 = multiply_low(c0, 0xD2511F53), p1 = multiply_low(c2, 0xCD9E8D57);
      c0 = (p1 >> 32) ^ c1 ^ uint64_t{k0};
      c2 = (p0 >> 32) ^ c3 ^ uint64_t{k1};
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    const VL words[4] = {c0, c1, c2, c3};
    for (int i = 0; i < 4; ++i) {
      const VS low = __builtin_convertvector(words[i], VS);
      __builtin_memcpy(out[i] + first, &low, sizeof low);
    }
  }
}

void philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
  uint32_t words[4][W];
  uint64_t seed = key[0] | uint64_t{key[1]} << 32, step = counter[1] | uint64_t{counter[2]} << 32;
  philox_blocks(seed, step, counter[3], counter[0], words);
  for (int i = 0; i < 4; ++i) out[i] = words[i][0];
}

// Elements [begin, end) of a stream of standard normals, written to out[begin, end).
void normal(uint64_t seed, uint64_t step, uint32_t stream, float* out, long begin, long end) {
  uint32_t words[4][W];
  alignas(64) float values[4 * W];
  for (long block = begin / 4; block * 4 < end; block += W) {
    philox_blocks(seed, step, stream, static_cast<uint32_t>(block), words);
    for (int pair = 0; pair < 2; ++pair) {
      VI k0, k1;
      for (int l = 0; l < W; ++l) {
        k0[l] = static_cast<int32_t>(words[2 * pair][l] >> 8);
        k1[l] = static_cast<int32_t>(words[2 * pair + 1][l] >> 8);
      }
      Pair n = box_muller(k0, k1);
      for (int l = 0; l < W; ++l) {
        values[4 * l + 2 * pair] = n.first[l];
        values[4 * l + 2 * pair + 1] = n.second[l];
      }
    }
    long from = block * 4 < begin ? begin : block * 4, to = (block + W) * 4 < end ? (block + W) * 4 : end;
    for (long i = from; i < to; ++i) out[i] = values[i - block * 4];
  }
}

// The key of each of an epoch's rows: words 2 row (low half) and 2 row + 1 of the stream.
void order_keys(uint64_t seed, uint64_t epoch, uint64_t* keys, long rows) {
  uint32_t words[4][W];
  uint64_t values[2 * W];
  for (long row = 0; row < rows; row += 2 * W) {
    philox_blocks(seed, epoch, stream_order, static_cast<uint32_t>(row / 2), words);
    for (int l = 0; l < W; ++l)
      for (int i = 0; i < 2; ++i) values[2 * l + i] = words[2 * i][l] | uint64_t{words[2 * i + 1][l]} << 32;
    __builtin_memcpy(keys + row, values, sizeof(uint64_t) * (rows - row < 2 * W ? rows - row : 2 * W));
  }
}

// x[d] becomes [u < x[d]], u from word `first + d` of the stream.
void binarize_row(float* x, int n, uint64_t seed, uint64_t step, uint32_t stream, long first) {
  uint32_t words[4][W];
  float draws[4 * W];
  for (long block = first / 4; block * 4 < first + n; block += W) {
    philox_blocks(seed, step, stream, static_cast<uint32_t>(block), words);
    for (int i = 0; i < 4; ++i)
      for (int l = 0; l < W; ++l) draws[4 * l + i] = static_cast<float>(static_cast<int32_t>(words[i][l] >> 8));
    const long begin = block * 4 - first;  // in x
    const int from = static_cast<int>(begin < 0 ? -begin : 0),
              to = static_cast<int>(n - begin < 4 * W ? n - begin : 4 * W);
    for (int i = from; i < to; ++i) {
      // u < x is k + 1/2 < y, of y = 2^24 x. It is exact: from 2^23 on y is an integer, and 1/2 decides nothing.
      const float y = x[begin + i] * 0x1p24f;
      x[begin + i] = draws[i] + (y < 0x1p23f ? 0.5f : 0.0f) < y ? 1.0f : 0.0f;
    }
  }
}
