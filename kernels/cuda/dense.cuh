// The gradient of an affine layer's input, by tiles: dx = dy W^T f'(h).
#pragma once
#include "functions.cuh"
#include "product.cuh"

struct InputGradient {
  Matrix dy, w, h, dx;  // h.p null where the input is no hidden layer
  int rows, fan_in, fan_out, activation;
  const Loop* loop;
};

// One tile of dx.
template <int BM, int BN, int GROUP, int GROUPS>
DEVICE void input_gradient_tile(const InputGradient& args, int tile, float* shared) {
  const Place place = tile_place<BM, BN>(tile, args.fan_in);
  const int i0 = place.i, j0 = place.j;
  typedef Product<BM, BN, GROUP, GROUPS, true, true> TileProduct;
  auto inside = [&](int i, int j) { return i0 + i < args.rows && j0 + j < args.fan_in; };
  const auto h = TileProduct::beside(
      [&](int i, int j) { return args.h.p ? early_at(args.h.p, (i0 + i) * args.h.ld + j0 + j, inside(i, j)) : 0.0f; });
  TileProduct product;
  product.begin_with([](int, int) { return 0.0f; });
  if (!product.run(
          shared, {args.dy.p, args.dy.ld, args.rows}, {args.w.p, args.w.ld, args.fan_in}, args.fan_out, i0, j0, EARLY_B,
          [&] { return backward_goes_on(args.loop); }, [](const auto&) {}))
    return;
  product.each([&](int i, int j, float c, int e) {
    if (inside(i, j))
      args.dx.p[(i0 + i) * args.dx.ld + j0 + j] = args.h.p ? c * slope(args.activation, rounded(h(i, j, e))) : c;
  });
}
