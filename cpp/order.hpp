// The stable argsort of random keys, which is the order of an epoch: fastvae/rng.py, epoch_order.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>

namespace fastvae {

// out[i] = row of the i-th smallest of n keys, rows of equal keys in order. Right for any keys with n < 2^40, and
// linear in n for uniform ones, whatever n is.
//
// An item is a key's high bits with the row in place of the low ones, so that what moves is half as large. Two passes
// of a radix sort, from the lower digit to the higher, bring the items into order by bits enough for at least two
// buckets a row; the few neighbours that are still in the wrong order are sorted by insertion, which reads the whole
// keys where the items' bits agree.
inline void stable_order(const uint64_t* keys, int64_t n, int64_t* out) {
  int row_bits = 1;
  while (n >> row_bits) ++row_bits;
  const int digit_bits = row_bits / 2 + 1;
  const int high_shift = 64 - digit_bits, low_shift = high_shift - digit_bits;
  const int64_t buckets = int64_t{1} << digit_bits;
  const uint64_t digit_mask = buckets - 1, row_mask = (uint64_t{1} << row_bits) - 1;

  // counts of the digits, then the place of each bucket's next item
  std::unique_ptr<int64_t[]> places(new int64_t[2 * buckets]());
  int64_t *low = places.get(), *high = low + buckets;
  for (int64_t row = 0; row < n; ++row) {
    ++low[keys[row] >> low_shift & digit_mask];
    ++high[keys[row] >> high_shift];
  }
  for (int64_t* place : {low, high})
    for (int64_t bucket = 0, sum = 0; bucket < buckets; ++bucket) {
      const int64_t count = place[bucket];
      place[bucket] = sum;
      sum += count;
    }

  std::unique_ptr<uint64_t[]> items(new uint64_t[n]);
  uint64_t* sorted = reinterpret_cast<uint64_t*>(out);
  for (int64_t row = 0; row < n; ++row)
    items[low[keys[row] >> low_shift & digit_mask]++] = (keys[row] & ~row_mask) | static_cast<uint64_t>(row);
  for (int64_t i = 0; i < n; ++i) sorted[high[items[i] >> high_shift]++] = items[i];

  const auto after = [&](uint64_t a, uint64_t b) {
    return (a ^ b) > row_mask ? a > b : keys[a & row_mask] > keys[b & row_mask];
  };
  for (int64_t i = 1; i < n; ++i) {
    const uint64_t item = sorted[i];
    int64_t j = i;
    for (; j > 0 && after(sorted[j - 1], item); --j) sorted[j] = sorted[j - 1];
    sorted[j] = item;
  }
  for (int64_t i = 0; i < n; ++i) sorted[i] &= row_mask;
}

}  // namespace fastvae
