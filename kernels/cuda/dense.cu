// Affine layers y = f(x W + b): forward, the gradient of their input, and those of their parameters.
//
//   forward          y  = f(x W + b)                     y (M, N), x (M, K), W (K, N), b (N)
//   input_gradient   dx = dy W^T f'(h)                   dx (M, K); h, kept by forward, is the layer's input
//   weight_gradient  dW = x^T dy, db = sum of dy's rows   added to a gradient, or the optimizer's step at once
//
// Each is one product by tiles of 32 x 32 or 64 x 64 of its result; the launcher takes the larger ones where they still
// fill the device, and in the fused loop split ones in place of the small. b is row K of W.
#include "dense.cuh"
#include "optimizer.cuh"

struct Forward {
  Matrix x, w, y;
  int rows, fan_in, fan_out, activation;
  const Loop* loop;  // null outside the fused loop
};

// Grid: the tiles of y.
template <int BM, int BN, int GROUP, int GROUPS>
DEVICE void forward_tile(const Forward& args, float* shared) {
  const Place place = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  const int i0 = place.i, j0 = place.j;
  const float* b = args.w.p + args.fan_in * args.w.ld + j0;
  Product<BM, BN, GROUP, GROUPS, true, false> product;
  product.begin_with([&](int, int j) { return early_at(b, j, j0 + j < args.fan_out); });
  if (!product.run(
          shared, {args.x.p, args.x.ld, args.rows}, {args.w.p, args.w.ld, args.fan_out}, args.fan_in, i0, j0, EARLY_B,
          [&] { return forward_goes_on(args.loop); }, [](const auto&) {}))
    return;
  product.each([&](int i, int j, float c, int) {
    if (i0 + i >= args.rows || j0 + j >= args.fan_out) return;
    float y = activate(args.activation, c);
    // a hidden layer is kept as the products read it, so that its slope is that of what they read
    args.y.p[(i0 + i) * args.y.ld + j0 + j] = args.activation == ACTIVATION_NONE ? y : rounded(y);
  });
}
AHEAD_KERNEL(forward_small, 128, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<SMALL>(args, shared);
}
AHEAD_KERNEL(forward_split, 128, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<SPLIT>(args, shared);
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
AHEAD_KERNEL(input_gradient_split, 128, InputGradient) {
  SHARED_FLOATS(shared);
  input_gradient_tile<SPLIT>(args, blockIdx.x, shared);
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

// A parameter and its state, or the gradient that is added to, read before the sums are made.
struct Parameter {
  float w, s0, s1;
};

DEVICE Parameter parameter_at(const WeightGradient& layer, int i, int j, bool valid) {
  if (layer.grad) return {early_at(layer.grad, static_cast<i64>(i) * layer.fan_out + j, valid), 0.0f, 0.0f};
  const i64 at = i * layer.w.ld + j;
  const float s1 = layer.s1 ? early_at(layer.s1, at, valid) : 0.0f;
  return {early_at(layer.w.p, at, valid), early_at(layer.s0, at, valid), s1};
}
DEVICE void apply(const WeightGradient& layer, const Update& update, int i, int j, float g, Parameter p) {
  if (layer.grad) {
    layer.grad[static_cast<i64>(i) * layer.fan_out + j] = p.w + g;
    return;
  }
  const i64 at = i * layer.w.ld + j;
  layer.w.p[at] = updated(update, p.w, g, p.s0, p.s1);
  layer.s0[at] = p.s0;
  if (layer.s1) layer.s1[at] = p.s1;
}

// Grid: the tiles of every layer, one after another. Blocks of a layer's first row of tiles sum dy for db besides.
template <int BM, int BN, int GROUP, int GROUPS>
DEVICE void weight_gradient_tile(const WeightGradients& args, float* shared) {
  int l = 0;
  while (l + 1 < args.count && static_cast<int>(blockIdx.x) >= args.layers[l + 1].first_block) ++l;
  const WeightGradient& layer = args.layers[l];
  const Place place = tile_place<BM, BN>(blockIdx.x - layer.first_block, layer.fan_out);
  const int i0 = place.i, j0 = place.j;
  typedef Product<BM, BN, GROUP, GROUPS, false, false> TileProduct;
  auto inside = [&](int i, int j) { return i0 + i < layer.fan_in && j0 + j < layer.fan_out; };
  const int column = j0 + threadIdx.x;
  const bool with_bias = i0 == 0 && threadIdx.x < BN && column < layer.fan_out;
  const auto parameters =
      TileProduct::beside([&](int i, int j) { return parameter_at(layer, i0 + i, j0 + j, inside(i, j)); });
  const Parameter bias = parameter_at(layer, layer.fan_in, column, with_bias);
  TileProduct product;
  product.begin_with([](int, int) { return 0.0f; });
  float db = 0.0f;
  const bool goes_on = product.run(
      shared, {layer.x.p, layer.x.ld, layer.fan_in}, {layer.dy.p, layer.dy.ld, layer.fan_out}, layer.rows, i0, j0,
      EARLY_A, [&] { return layer.early ? read_early(&args.loop->complete) != 0 : backward_goes_on(args.loop); },
      [&](const auto& dy) {
        if (with_bias)
          for (int k = 0; k < DEPTH; ++k) db += rounded(dy.one(threadIdx.x, k));
      });
  if (layer.early) wait_for_launch_before();  // which may read w
  if (!goes_on) return;
  const Update update = args.loop ? args.loop->now.update : Update{};  // once: no store can change it in registers
  product.each([&](int i, int j, float c, int e) {
    if (inside(i, j)) apply(layer, update, i0 + i, j0 + j, c, parameters(i, j, e));
  });
  if (with_bias) apply(layer, update, layer.fan_in, column, db, bias);
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
