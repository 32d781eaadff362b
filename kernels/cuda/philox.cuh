// Philox4x32-10 streams, as fastvae/rng.py defines them: key = seed, counter = (word / 4, step low, step high, stream).
#pragma once
#include "functions.cuh"

struct Words {
  u32 word[4];
};

DEVICE Words philox(u32 k0, u32 k1, u32 c0, u32 c1, u32 c2, u32 c3) {
  for (int round = 0; round < 10; ++round) {
    u32 high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    u32 high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

DEVICE Words philox_block(u64 seed, u64 step, u32 stream, u32 block) {
  return philox(static_cast<u32>(seed), static_cast<u32>(seed >> 32), block, static_cast<u32>(step),
                static_cast<u32>(step >> 32), stream);
}

// Two standard normals from two words, by Box-Muller: u = (k + 1/2) / 2^24 of the upper 24 bits. Above one half, log u
// is taken through t = 1 - u, which float32 holds exactly where it does not hold u. The angle 2 pi u1 is the nearest
// quarter turn by integers and a rest of at most 1/8 turn; fit errors 5e-11.
DEVICE void box_muller(u32 word0, u32 word1, float& first, float& second) {
  int k0 = static_cast<int>(word0 >> 8), k1 = static_cast<int>(word1 >> 8);
  bool upper = k0 >= (1 << 23);
  float u = (static_cast<float>(upper ? 0xffffff - k0 : k0) + 0.5f) * 0x1p-24f;  // u, or 1 - u
  float radius = sqrtf(-2.0f * (upper ? log1p_small(-u) : logf(u)));
  int quarter = (k1 + (1 << 21)) >> 22;
  float f = (static_cast<float>(k1 - (quarter << 22)) + 0.5f) * 0x1p-24f, t = f * f;
  float s = ((((41.47295f * t - 76.6978683f) * t + 81.6052017f) * t - 41.3417015f) * t + 6.28318548f) * f;
  float c = (((59.2204056f * t - 85.4428558f) * t + 64.9393158f) * t - 19.7392082f) * t + 1.0f;
  float cosine = quarter & 1 ? s : c, sine = quarter & 1 ? c : s;
  first = radius * ((quarter + 1) & 2 ? -cosine : cosine);
  second = radius * (quarter & 2 ? -sine : sine);
}

// Elements 4 block to 4 block + 3 of a stream of standard normals, from its words.
DEVICE void normal_block(const Words& w, float (&out)[4]) {
  box_muller(w.word[0], w.word[1], out[0], out[1]);
  box_muller(w.word[2], w.word[3], out[2], out[3]);
}
DEVICE float normal_at(u64 seed, u64 step, u32 stream, i64 element) {
  Words w = philox_block(seed, step, stream, static_cast<u32>(element / 4));
  float first, second;
  bool upper_pair = element % 4 >= 2;
  box_muller(upper_pair ? w.word[2] : w.word[0], upper_pair ? w.word[3] : w.word[1], first, second);
  return element % 2 ? second : first;
}

// [u < v] of u = (k + 1/2) / 2^24, compared exactly: from 2^23 on 2^24 v is a whole number, and k will do; below, k +
// 1/2 is exact or rounded to no less than 2^23.
DEVICE float below(u32 word, float v) {
  const float k = static_cast<float>(word >> 8), scaled = v * 0x1p24f;
  return (scaled >= 0x1p23f ? k : k + 0.5f) < scaled ? 1.0f : 0.0f;
}

enum Binarize { BINARIZE_NONE, BINARIZE_DYNAMIC, BINARIZE_FIXED, BINARIZE_SHARED };

// f(d, word) of each column d of n of row m of the minibatch, `number` in the dataset: the word that `below` compares
// with its scaled grey level. Each block of four words is drawn once, by thread `part` of `parts`.
template <typename F>
DEVICE void each_pixel(int binarize, u64 seed, u64 step, i64 number, int m, int n, int part, int parts, F f) {
  const bool dynamic = binarize == BINARIZE_DYNAMIC;
  const u64 key = dynamic ? step : binarize == BINARIZE_FIXED ? static_cast<u64>(number) : 0;
  const u32 stream = dynamic ? STREAM_BINARIZE : STREAM_BINARIZE_FIXED;
  const i64 first = dynamic ? static_cast<i64>(m) * n : 0;
  const int before = static_cast<int>(first % 4), blocks = (before + n + 3) / 4;
  for (int block = part; block < blocks; block += parts) {
    const Words w = philox_block(seed, key, stream, static_cast<u32>(first / 4 + block));
    const int d0 = 4 * block - before;
    UNROLL
    for (int i = 0; i < 4; ++i)
      if (d0 + i >= 0 && d0 + i < n) f(d0 + i, w.word[i]);
  }
}
