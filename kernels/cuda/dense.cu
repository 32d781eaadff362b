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
  if (forward_is_over(args.loop)) return;
  const Place place = tile_place<BM, BN>(blockIdx.x, args.fan_out);
  const int i0 = place.i, j0 = place.j;
  Product<BM, BN, THREADS, true, false> product;
  product.run(shared, {args.x.p, args.x.ld, args.rows}, {args.w.p, args.w.ld, args.fan_out}, args.fan_in, i0, j0,
              [](const auto&, const auto&) {});
  const float* b = args.w.p + args.fan_in * args.w.ld;
  product.each([&](int i, int j, float c) {
    if (i0 + i >= args.rows || j0 + j >= args.fan_out) return;
    float y = activate(args.activation, c + b[j0 + j]);
    // a hidden layer is kept as the products read it, so that its slope is that of what they read
    args.y.p[(i0 + i) * args.y.ld + j0 + j] = args.activation == ACTIVATION_NONE ? y : rounded(y);
  });
}
KERNEL(forward_small, 128, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<SMALL>(args, shared);
}
KERNEL(forward_large, 256, Forward) {
  SHARED_FLOATS(shared);
  forward_tile<LARGE>(args, shared);
}

// Grid: the tiles of dx.
KERNEL(input_gradient_small, 128, InputGradient) {
  SHARED_FLOATS(shared);
  if (!backward_is_over(args.loop)) input_gradient_tile<SMALL>(args, blockIdx.x, shared);
}
KERNEL(input_gradient_large, 256, InputGradient) {
  SHARED_FLOATS(shared);
  if (!backward_is_over(args.loop)) input_gradient_tile<LARGE>(args, blockIdx.x, shared);
}

struct WeightGradient {  // of one layer
  Matrix x, dy;
  int rows, fan_in, fan_out;
  int first_block;  // of the layer's tiles in the grid
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

DEVICE void apply(const WeightGradient& layer, const Update& update, int i, int j, float g) {
  if (layer.grad) {
    layer.grad[static_cast<i64>(i) * layer.fan_out + j] += g;
    return;
  }
  const i64 at = i * layer.w.ld + j;
  const bool second = update.rule == RULE_ADAM;
  float s0 = layer.s0[at], s1 = second ? layer.s1[at] : 0.0f;
  layer.w.p[at] = updated(update, layer.w.p[at], g, s0, s1);
  layer.s0[at] = s0;
  if (second) layer.s1[at] = s1;
}

// Grid: the tiles of every layer, one after another. Blocks of a layer's first row of tiles sum dy for db besides.
template <int BM, int BN, int THREADS>
DEVICE void weight_gradient_tile(const WeightGradients& args, float* shared) {
  if (backward_is_over(args.loop)) return;
  int l = 0;
  while (l + 1 < args.count && static_cast<int>(blockIdx.x) >= args.layers[l + 1].first_block) ++l;
  const WeightGradient& layer = args.layers[l];
  const Place place = tile_place<BM, BN>(blockIdx.x - layer.first_block, layer.fan_out);
  const int i0 = place.i, j0 = place.j;
  Product<BM, BN, THREADS, false, false> product;
  const bool with_bias = i0 == 0 && threadIdx.x < BN;
  float db = 0.0f;
  product.run(shared, {layer.x.p, layer.x.ld, layer.fan_in}, {layer.dy.p, layer.dy.ld, layer.fan_out}, layer.rows, i0,
              j0, [&](const auto&, const auto& dy) {
                if (with_bias)
                  for (int k = 0; k < DEPTH; ++k) db += rounded(dy.p[k * dy.ld + threadIdx.x]);
              });
  const Update update = args.loop ? args.loop->now.update : Update{};  // once: no store can change it in registers
  product.each([&](int i, int j, float c) {
    if (i0 + i < layer.fan_in && j0 + j < layer.fan_out) apply(layer, update, i0 + i, j0 + j, c);
  });
  const int column = j0 + threadIdx.x;
  if (with_bias && column < layer.fan_out) apply(layer, update, layer.fan_in, column, db);
}
KERNEL(weight_gradients_small, 128, WeightGradients) {
  SHARED_FLOATS(shared);
  weight_gradient_tile<SMALL>(args, shared);
}
KERNEL(weight_gradients_large, 256, WeightGradients) {
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
