// Philox4x32-10 streams, as fastvae/rng.py defines them: key = seed, counter = (word / 4, step low, step high, stream).
#pragma once

// Blocks [block, block + W) of a stream, word by word: out[i][l] is word i of block `block + l`.
inline void philox_blocks(uint64_t seed, uint64_t step, uint32_t stream, uint32_t block, uint32_t out[4][W]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int l = 0; l < W; ++l) {
    out[0][l] = block + static_cast<uint32_t>(l);
    out[1][l] = static_cast<uint32_t>(step);
    out[2][l] = static_cast<uint32_t>(step >> 32);
    out[3][l] = stream;
  }
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < W; ++l) {
      uint64_t p0 = uint64_t{0xD2511F53} * out[0][l], p1 = uint64_t{0xCD9E8D57} * out[2][l];
      out[0][l] = static_cast<uint32_t>(p1 >> 32) ^ out[1][l] ^ k0;
      out[2][l] = static_cast<uint32_t>(p0 >> 32) ^ out[3][l] ^ k1;
      out[1][l] = static_cast<uint32_t>(p1);
      out[3][l] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
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

// x[d] becomes [u < x[d]], u from word `first + d` of the stream.
void binarize_row(float* x, int n, uint64_t seed, uint64_t step, uint32_t stream, long first) {
  uint32_t words[4][W];
  for (long block = first / 4; block * 4 < first + n; block += W) {
    philox_blocks(seed, step, stream, static_cast<uint32_t>(block), words);
    for (int l = 0; l < 4 * W; ++l) {
      long d = block * 4 + l - first;
      // compared in float64, where u = (k + 1/2) / 2^24 is exact
      if (d >= 0 && d < n) x[d] = (words[l % 4][l / 4] >> 8) + 0.5 < x[d] * 16777216.0 ? 1.0f : 0.0f;
    }
  }
}
