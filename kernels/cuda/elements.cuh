// What a thread holds of a tile, as arrays: all of it is read, then worked out, then written, so that no element waits
// for another one's way to memory.
//
// Of a tile P a thread has P::elements, the e-th at P::place_of(e). P::NEIGHBOURS of them, from a multiple of that on,
// lie side by side in a row, the first at a multiple of it.
#pragma once
#include "common.cuh"

// Where something lies in a tile, or a tile in a matrix.
struct Place {
  int i, j;
};

// A matrix of the engine's own memory from a tile's corner on, and what there is of it: at least one row and column.
struct Window {
  float* p;
  int ld, rows, columns;
};
DEVICE Window window(const Matrix& m, Place corner, int rows, int columns) {
  return {m.p + corner.i * m.ld + corner.j, static_cast<int>(m.ld), rows - corner.i, columns - corner.j};
}

// The biases, below a layer's weights, of a tile's columns.
DEVICE Window bias_window(const Matrix& w, int fan_in, int j0, int fan_out) {
  return {w.p + fan_in * w.ld + j0, 0, 1 << 30, fan_out - j0};
}

// What was written two launches before or earlier, row(i) in place of row i. Outside it is zero, as the padding is.
template <typename P, typename Row>
DEVICE void read_elements(const Window& from, float* v, Row row) {
  UNROLL
  for (int e = 0; e < P::elements; e += P::NEIGHBOURS) {
    const Place at = P::place_of(e);
    const bool inside = at.i < from.rows && at.j < from.columns;
    early_neighbours_at<P::NEIGHBOURS>(from.p, static_cast<i64>(row(at.i)) * from.ld + at.j, inside, v + e);
  }
}
template <typename P>
DEVICE void read_elements(const Window& from, float* v) {
  read_elements<P>(from, v, [](int i) { return i; });
}

// Neighbours at once, zeros where they lie in the padding.
template <typename P>
DEVICE void write_elements(const Window& to, const float* v) {
  UNROLL
  for (int e = 0; e < P::elements; e += P::NEIGHBOURS) {
    const Place at = P::place_of(e);
    float group[P::NEIGHBOURS];
    UNROLL
    for (int n = 0; n < P::NEIGHBOURS; ++n) group[n] = at.j + n < to.columns ? v[e + n] : 0.0f;
    if (at.i < to.rows && at.j < to.columns) put_neighbours(to.p + static_cast<i64>(at.i) * to.ld + at.j, group);
  }
}

// The sums of a product, and what they begin with.
template <typename P>
DEVICE void take_sums(P& product, float* v) {
  UNROLL
  for (int e = 0; e < P::elements; ++e) v[e] = product.element(e);
}
template <typename P>
DEVICE void begin_with(P& product, float v) {
  UNROLL
  for (int e = 0; e < P::elements; ++e) product.element(e) = v;
}
template <typename P>
DEVICE void begin_with(P& product, const Window& from) {
  float v[P::elements];
  read_elements<P>(from, v);
  UNROLL
  for (int e = 0; e < P::elements; ++e) product.element(e) = v[e];
}
