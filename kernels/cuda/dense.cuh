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
template <int BM, int BN, int THREADS>
DEVICE void input_gradient_tile(const InputGradient& args, int tile, float* shared) {
  typedef Product<BM, BN, THREADS, true, true> TileProduct;
  const Place corner = tile_place<BM, BN>(tile, args.fan_in);
  float h[TileProduct::elements], dx[TileProduct::elements];
  auto read_h = [&] {
    if (args.h.p) read_elements<TileProduct>(window(args.h, corner, args.rows, args.fan_in), h);
  };
  if (TileProduct::READ_AHEAD) read_h();
  TileProduct product;
  begin_with(product, 0.0f);
  if (!product.run(
          shared, {args.dy.p, args.dy.ld, args.rows}, {args.w.p, args.w.ld, args.fan_in}, args.fan_out, corner.i,
          corner.j, EARLY_B, [&] { return backward_goes_on(args.loop); }, [](const auto&, const auto&) {}))
    return;
  if (!TileProduct::READ_AHEAD) read_h();
  take_sums(product, dx);
  if (args.h.p) {
    round_all(h);
    times_slope(args.activation, dx, h);
  }
  write_elements<TileProduct>(window(args.dx, corner, args.rows, args.fan_in), dx);
}
