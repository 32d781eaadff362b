// Affine layers y = f(x W + b): forward, the gradient of their input, and those of their parameters.
//
//   forward          y  = f(x W + b)                     y (M, N), x (M, K), W (K, N), b (N)
//   input_gradient   dx = dy W^T f'(h)                   dx (M, K); h, kept by forward, is the layer's input
//   weight_gradient  dW = x^T dy, db = sum of dy's rows   added to a gradient, or the optimizer's step at once
//
// Each is one product by tiles of 32 x 32 or 64 x 64 of its result; the launcher takes the larger ones where they still
// fill the device. b is row K of W.
#include "dense.cuh"
#include "optimizer.cuh"

struct Forward {
  Matrix x, w, y;
  int rows, fan_in, fan_out, activation;
  const Loop* loop;  // null outside the fused loop
};

// Grid: the tiles of y.
template <int BM, int BN, int THREADS>
DEVICE void forward_tile(const Forward& args, float* shared) {
  typedef Product<BM, BN, THREADS, true, false> TileProduct;
  const Place corner = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  TileProduct product;
  begin_with(product, bias_window(args.w, args.fan_in, corner.j, args.fan_out));
  if (!product.run(
          shared, {args.x.p, args.x.ld, args.rows}, {args.w.p, args.w.ld, args.fan_out}, args.fan_in, corner.i,
          corner.j, EARLY_B, [&] { return forward_goes_on(args.loop); }, [](const auto&, const auto&) {}))
    return;
  float y[TileProduct::elements];
  take_sums(product, y);
  if (args.activation != ACTIVATION_NONE) {
    activate_all(args.activation, y);
    round_all(y);  // a hidden layer is kept as the products read it, so that its slope is that of what they read
  }
  write_elements<TileProduct>(window(args.y, corner, args.rows, args.fan_out), y);
}
AHEAD_KERNEL(forward_small, 128, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<SMALL>(args, shared);
}
AHEAD_KERNEL(forward_large, 256, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<LARGE>(args, shared);
}

// Grid: the tiles of dx.
AHEAD_KERNEL(input_gradient_small, 128, InputGradient) {
  SHARED_FLOATS(shared);
  input_gradient_tile<SMALL>(args, blockIdx.x, shared);
}
AHEAD_KERNEL(input_gradient_large, 256, InputGradient) {
  SHARED_FLOATS(shared);
  input_gradient_tile<LARGE>(args, blockIdx.x, shared);
}

struct WeightGradient {  // of one layer
  Matrix x, dy;
  int rows, fan_in, fan_out;
  int first_block;  // of the layer's tiles in the grid
  int early;        // whether dy is older than the launch before, too
  float* grad;      // (fan_in + 1, fan_out) contiguous, added to; or null, and the optimizer's step is made
  Matrix w;
  float *s0, *s1;  // the optimizer's state, laid out as w; s1 is Adam's alone
};

constexpr int MAX_LAYERS = 8;

struct WeightGradients {
  WeightGradient layers[MAX_LAYERS];
  int count;
  const Loop* loop;
};

// Grid: the tiles of every layer, one after another. Blocks of a layer's first row of tiles sum dy for db besides: four
// threads a column, in an order that depends on the rows alone.
template <int BM, int BN, int THREADS>
DEVICE void weight_gradient_tile(const WeightGradients& args, float* shared) {
  typedef Product<BM, BN, THREADS, false, false> TileProduct;
  int l = 0;
  while (l + 1 < args.count && static_cast<int>(blockIdx.x) >= args.layers[l + 1].first_block) ++l;
  const WeightGradient layer = args.layers[l];
  const Place corner = tile_place<BM, BN>(blockIdx.x - layer.first_block, layer.fan_out);

  // the bias stands behind the tile's elements
  constexpr int N = TileProduct::elements, SHARERS = 4;
  static_assert(THREADS == SHARERS * BN, "a part of a column's sum for each thread");
  const int column = threadIdx.x / SHARERS, sharer = threadIdx.x % SHARERS;
  const bool first_row = corner.i == 0, with_bias = first_row && sharer == 0 && corner.j + column < layer.fan_out;
  const i64 bias = layer.fan_in * layer.w.ld + corner.j + column;
  float w[N + 1], s0[N + 1], s1[N + 1], g[N + 1];
  auto at_corner = [&](float* p) { return window({p, layer.w.ld}, corner, layer.fan_in, layer.fan_out); };
  Update update;
  auto read = [&](float* p, float (&v)[N + 1]) {
    read_elements<TileProduct>(at_corner(p), v);
    v[N] = early_at(p, bias, with_bias);
  };
  auto read_all = [&] {
    if (layer.grad) return;
    read(layer.w.p, w);
    read(layer.s0, s0);
    if (layer.s1) read(layer.s1, s1);
    update = read_early_words(&args.loop->now.update);
  };
  if (TileProduct::READ_AHEAD) read_all();
  TileProduct product;
  begin_with(product, 0.0f);
  float db = 0.0f;
  const bool goes_on = product.run(
      shared, {layer.x.p, layer.x.ld, layer.fan_in}, {layer.dy.p, layer.dy.ld, layer.fan_out}, layer.rows, corner.i,
      corner.j, EARLY_A,
      [&] { return layer.early ? read_early(&args.loop->complete) != 0 : backward_goes_on(args.loop); },
      [&](const auto&, const auto& dy) {
        if (!first_row) return;
        UNROLL
        for (int k = 0; k < DEPTH; k += 4 * SHARERS) {
          const float4 v = dy.at(column, k + 4 * sharer);
          db += (rounded(v.x) + rounded(v.y)) + (rounded(v.z) + rounded(v.w));
        }
      });
  if (layer.early) wait_for_launch_before();  // which may read w
  if (!goes_on) return;
  if (!TileProduct::READ_AHEAD) read_all();
  take_sums(product, g);
  g[N] = db;
  if (first_row)
    for (int distance = SHARERS / 2; distance; distance /= 2) g[N] += shuffle_xor(g[N], distance);

  if (layer.grad) {
    UNROLL
    for (int e = 0; e < N; ++e) {
      const Place at = TileProduct::place_of(e);
      const int i = corner.i + at.i, j = corner.j + at.j;
      if (i < layer.fan_in && j < layer.fan_out) layer.grad[static_cast<i64>(i) * layer.fan_out + j] += g[e];
    }
    if (with_bias) layer.grad[static_cast<i64>(layer.fan_in) * layer.fan_out + corner.j + column] += g[N];
    return;
  }
  update_all(update, w, g, s0, s1);
  auto write = [&](float* p, const float (&v)[N + 1]) {
    write_elements<TileProduct>(at_corner(p), v);
    if (with_bias) p[bias] = v[N];
  };
  write(layer.w.p, w);
  write(layer.s0, s0);
  if (layer.s1) write(layer.s1, s1);
}
AHEAD_KERNEL(weight_gradients_small, 128, WeightGradients) {
  SHARED_FLOATS(shared);
  weight_gradient_tile<SMALL>(args, shared);
}
AHEAD_KERNEL(weight_gradients_large, 256, WeightGradients) {
  SHARED_FLOATS(shared);
  weight_gradient_tile<LARGE>(args, shared);
}

struct Copy {
  Matrix from, to;
  int rows, columns;
};

// Between rows of any two leading dimensions. Grid: one block per row.
KERNEL(copy_rows, 256, Copy) {
  for (int j = threadIdx.x; j < args.columns; j += 256)
    args.to.p[blockIdx.x * args.to.ld + j] = args.from.p[blockIdx.x * args.from.ld + j];
}
