// What lies between the products of cuBLAS in a step (cublas_step.py): each pass reads and writes its rows once.
//
//   store_rows    h = f(y + b)              a product's result, or other rows without f and b, as products read them
//   bias_rows     y = y + b                 the encoder's heads, and the decoder's in a dream
//   compare_rows  log p(x|z) and dout       from out without its bias; log p(x|z) alone, or with weights for the rows
//   slope_rows    dh = dy f'(h)
//   update_layer  the optimizer's step on a layer's [W; b], and the copy of W that products read
//
// A product's operands are Stored: bfloat16 in bf16, else float32, rounded in tf32; its result is float32. Rows are
// padded to multiples of 16; products run over the padding, so that of operands is kept zero. Behind the columns of an
// input x or h stands a one: it makes db the last row of x^T dy. The copy of W has no row for it, and the bias is added
// in float32 here.
#include "likelihood.cuh"
#include "optimizer.cuh"
#include "product.cuh"

#if FASTVAE_PRECISION == BF16
typedef unsigned short Stored;
#else
typedef float Stored;
#endif

struct StoredRows {
  Stored* p;
  i64 ld;
};

// Four neighbours at a multiple of four.
DEVICE float4 four_at(const float* p) { return *reinterpret_cast<const float4*>(p); }
DEVICE void put_float4(float* p, const float4& v) { *reinterpret_cast<float4*>(p) = v; }
#if FASTVAE_PRECISION == BF16
struct alignas(8) TwoPairs {
  u32 low, high;
};
DEVICE float4 four_at(const Stored* p) {
  const TwoPairs v = *reinterpret_cast<const TwoPairs*>(p);
  return {from_bits(v.low << 16), from_bits(v.low & 0xffff0000u), from_bits(v.high << 16),
          from_bits(v.high & 0xffff0000u)};
}
DEVICE void put_four(Stored* p, const float4& v) {
  *reinterpret_cast<TwoPairs*>(p) = {to_bf16_pair(v.x, v.y), to_bf16_pair(v.z, v.w)};
}
DEVICE Stored stored(float v) { return static_cast<Stored>(to_bf16_pair(v, 0.0f)); }
#else
DEVICE void put_four(Stored* p, const float4& v) {
  put_float4(p, {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)});
}
DEVICE Stored stored(float v) { return rounded(v); }
#endif

// f(j, v) of four neighbours from column j on.
template <typename F>
DEVICE float4 each_of(const float4& v, int j, F f) {
  return {f(j, v.x), f(j + 1, v.y), f(j + 2, v.z), f(j + 3, v.w)};
}

// The thread's four neighbours in rows of ld: grids are rows * ld / 4 threads.
DEVICE Place four_of_thread(i64 ld) {
  const int groups = static_cast<int>(ld / 4), e = blockIdx.x * 256 + threadIdx.x;
  return {e / groups, e % groups * 4};
}

struct StoreRows {
  Matrix from;
  const float* b;  // or null
  StoredRows to;
  int rows, columns, activation, one;  // one: whether a one stands behind the columns
  const Loop* loop;
};

KERNEL(store_rows, 256, StoreRows) {
  if (forward_is_over(args.loop)) return;
  const Place at = four_of_thread(args.to.ld);
  if (at.i >= args.rows) return;
  const float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
  const float4 v = at.j < args.columns ? four_at(args.from.p + at.i * args.from.ld + at.j) : zero;
  put_four(args.to.p + at.i * args.to.ld + at.j, each_of(v, at.j, [&](int j, float e) {
             if (j >= args.columns) return j == args.columns && args.one ? 1.0f : 0.0f;
             return activate(args.activation, args.b ? e + args.b[j] : e);
           }));
}

struct BiasRows {
  Matrix y;
  const float* b;
  int rows, columns;
};

KERNEL(bias_rows, 256, BiasRows) {
  const Place at = four_of_thread(args.y.ld);
  if (at.i >= args.rows) return;
  float* y = args.y.p + at.i * args.y.ld + at.j;
  put_float4(y, each_of(four_at(y), at.j, [&](int j, float v) { return j < args.columns ? v + args.b[j] : 0.0f; }));
}

struct CompareRows {
  Density density;
  Matrix x, out;  // x (M, D), row r of out belongs to x[r % M]
  const float* b;
  StoredRows dout;       // p null where it is not asked for
  float* log_px;         // (R,)
  const float* weights;  // (R,), or null where all are alike
  float scale;
  int x_rows;
  const Loop* loop;
};

// Grid: one block per row of out.
KERNEL(compare_rows, 256, CompareRows) {
  SHARED_FLOATS(scratch);
  if (forward_is_over(args.loop)) return;
  const int r = blockIdx.x, n = args.density.data_dim;
  const float *x = args.x.p + r % args.x_rows * args.x.ld, *out = args.out.p + r * args.out.ld;
  Stored* dout = args.dout.p ? args.dout.p + r * args.dout.ld : nullptr;
  const float scale = args.weights ? args.scale * args.weights[r] : args.scale;
  float sum = 0.0f;
  for (int d = threadIdx.x; d < n; d += 256) {
    const float a = out[d] + args.b[d];
    const bool two = args.density.gaussian;
    const Point p = two ? gaussian(args.density, x[d], a, out[n + d] + args.b[n + d]) : bernoulli(x[d], a);
    sum += p.log_px;
    if (dout) dout[d] = stored(scale * p.dfirst);
    if (dout && two) dout[n + d] = stored(scale * p.dsecond);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) args.log_px[r] = sum;
}

struct SlopeRows {
  Matrix from;
  StoredRows h, dh;
  int rows, columns, activation;
  const Loop* loop;
};

KERNEL(slope_rows, 256, SlopeRows) {
  if (backward_is_over(args.loop)) return;
  const Place at = four_of_thread(args.dh.ld);
  if (at.i >= args.rows) return;
  const float4 h = four_at(args.h.p + at.i * args.h.ld + at.j), d = four_at(args.from.p + at.i * args.from.ld + at.j);
  const float4 f =
      each_of(h, at.j, [&](int j, float v) { return j < args.columns ? slope(args.activation, v) : 0.0f; });
  put_four(args.dh.p + at.i * args.dh.ld + at.j, {d.x * f.x, d.y * f.y, d.z * f.z, d.w * f.w});
}

struct UpdateLayer {
  Matrix g, w;     // (fan_in + 1, fan_out)
  float *s0, *s1;  // laid out as w; s1 is Adam's alone
  StoredRows copy;
  int fan_in, fan_out;
  const Loop* loop;
};

KERNEL(update_layer, 256, UpdateLayer) {
  if (backward_is_over(args.loop)) return;
  const Place at = four_of_thread(args.w.ld);
  if (at.i > args.fan_in || at.j >= args.fan_out) return;
  const Update update = args.loop->now.update;
  const bool second = update.rule == RULE_ADAM;
  const i64 place = at.i * args.w.ld + at.j;
  const float4 g = four_at(args.g.p + at.i * args.g.ld + at.j), zero = {0.0f, 0.0f, 0.0f, 0.0f};
  float4 w = four_at(args.w.p + place), s0 = four_at(args.s0 + place), s1 = second ? four_at(args.s1 + place) : zero;
  w.x = updated(update, w.x, g.x, s0.x, s1.x);
  if (at.j + 1 < args.fan_out) w.y = updated(update, w.y, g.y, s0.y, s1.y);
  if (at.j + 2 < args.fan_out) w.z = updated(update, w.z, g.z, s0.z, s1.z);
  if (at.j + 3 < args.fan_out) w.w = updated(update, w.w, g.w, s0.w, s1.w);
  put_float4(args.w.p + place, w);
  put_float4(args.s0 + place, s0);
  if (second) put_float4(args.s1 + place, s1);
  if (at.i < args.fan_in) put_four(args.copy.p + at.i * args.copy.ld + at.j, w);
}
