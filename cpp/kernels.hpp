// The table of kernels that one instruction-set level offers, and the plain structures that cross its border.
//
// kernels.cpp is compiled once per level; everything in it has internal linkage except its table. Only raw pointers
// cross, so that no inline library function compiled for a wider level can be linked into a narrower one.
//
// Units. Matrix products read their operands in units of 32 bits along the dimension that is summed: a float32, or, in
// bf16 mode, a pair of consecutive bfloat16. An odd last pair is filled with zero.
//
// Packed weights. A layer y = x W + b with W (fan_in x fan_out) is held as panels of `panel` columns,
//   w  [panels][fan_in][panel], b [panels * panel], padding columns zero, float32 in every mode.
// Products forward read w itself, or its pairs w16 [panels][ceil(fan_in / 2)][panel]; backprop reads W^T,
//   wt [ceil(fan_in / panel)][panels * panel units][panel]   (bf16: panels * panel / 2 units).
// Optimizer state has the layout of w and b. Activations are row-major with a leading dimension `ld` that covers whole
// panels.
#pragma once
#include <cstdint>

namespace fastvae {

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

enum class Activation : int { none, tanh, relu, softplus, sigmoid };
enum class Likelihood : int { bernoulli, gaussian };
enum class Dtype : int { u8, f32, f64 };
enum class Binarize : int { none, dynamic, fixed, shared };
// KL divergence analytic (equation 7), or of the draws (equation 6), or those weighed by importance (Burda et al.
// 2016); or wake-sleep (section 5).
enum class Estimator : int { sgvb_b, sgvb_a, iwae, wake_sleep };
enum class Rule : int { adagrad, adam, sgd, hold };

// Fourth counter word of the noise: fastvae/rng.py has the list.
enum Stream : uint32_t {
  stream_latent = 0,
  stream_binarize = 1,
  stream_binarize_fixed = 2,
  stream_order = 4,
  stream_dream_latent = 7,
  stream_dream = 8
};

// A matrix as lists of its units that are not zero, in order: those of row (or column) i from start[i] to end[i], with
// `room` for each.
struct Lists {
  int64_t room;
  int64_t *start, *end;
  int32_t* index;
  float* value;
};

// A matrix in bfloat16 pairs: `along` its rows, unit j of row i holds columns 2j and 2j + 1; `across` them, unit j of
// row i holds rows 2i and 2i + 1 of column j.
struct Pairs {
  float* along;
  long along_ld;
  float* across;
  long across_ld;
};

struct Density {
  Likelihood likelihood;
  bool sigmoid_mean;
  float logvar_floor;
  const float* x;
  long x_ld;
  int x_rows;  // row r of out is compared with row r % x_rows of x
  int data_dim;
  const float* out;
  long out_ld;
  float scale;
  float* log_px;
  float* dout;
  long dout_ld;
  bool weighed;  // dout is wanted in float32, in every mode, and weighed afterwards
  float* mean;   // or the sample
  long mean_ld;
  uint64_t seed, step;  // of the sample's noise
};

// C (rows x panels * panel) = A (rows x depth units) B, then an epilogue: f(C + bias); or C * f'(h) when h is given;
// or, when a density is, the gradient of its Bernoulli likelihood with logits C + bias, and log p(x|z) in a part per
// panel.
struct Affine {
  bool bf16;
  const float* a;
  long a_ld;
  const float* b;  // packed panels
  long b_rows;     // units allocated per column of a panel
  const float* bias;
  const float* h;  // float32, or pairs along the rows
  long h_ld;
  Activation activation;
  const Density* density;
  float* log_px;  // with density: [panels][rows]
  float* c;       // or null
  long c_ld;
  Pairs pairs;  // C once more, where bf16 and not null
  int rows, depth, panels;
  const Lists *lists, *columns;  // of A's rows or of its columns, or null
  float* sums;                   // with columns: room of this thread's for rows x 2 panels
};

// One step of the optimizer; constants that depend on the step are worked out by the caller.
struct Update {
  Rule rule;
  float rate, beta1, gain1, beta2, gain2, momentum, epsilon, root_scale, decay;  // gain = 1 - beta, not rounded twice
};

// dW (fan_in x fan_out) = x^T dy, db = sum of dy's rows; stored in w's layout when `gw` is given, else applied.
struct WeightGradient {
  bool bf16;
  const float* x;  // units of x and dy lie across the rows
  long x_ld;
  const float* dy;
  long dy_ld;
  int depth, fan_in, panels;
  float *w, *b, *w16, *wt;
  float *ws[2], *bs[2];
  float *gw, *gb;
  Update update;
  const Lists* lists;  // of x's columns, or null
};

struct Rows {  // a dataset, dense or CSR
  Dtype dtype;
  const void* values;
  const void* indptr;  // null when dense
  const void* indices;
  bool wide_indices;  // int64 instead of int32
  long n;
  int data_dim;
};

struct Gather {
  Rows data;
  const int64_t* index;
  float scale;
  Binarize binarize;
  uint64_t seed, step;
  float* x;
  long x_ld;
};

struct Latent {
  const float *mu, *logvar;
  long head_ld;
  const float* eps;  // [draws][rows][latent_dim]
  int draws, rows, latent_dim;
  float* z;
  long z_ld;
  float* kl;  // [rows], sampled [draws][rows]
  const float* dz;
  long dz_ld;
  float kl_scale;       // of a dream log q(z|x)'s
  const float* weight;  // sampled: of each draw's kl, [draws][rows]; where null all are kl_scale
  float *dmu, *dlogvar;
  long dhead_ld;
};

struct Kernels {
  const char* level;
  int panel;
  int (*affine_tasks)(const Affine&);
  void (*affine)(const Affine&, int begin, int end);
  int (*weight_tasks)(const WeightGradient&);
  void (*weight_gradient)(const WeightGradient&, int begin, int end);
  // The forms of w that products read, panels [begin, end): pairs in bf16 mode, and W^T where wt is given.
  void (*derive)(const float* w, float* w16, float* wt, int fan_in, int panels, int begin, int end);
  // Row pairs [begin, end) of a float32 matrix; one row back. Null where the level has no products of bfloat16.
  void (*to_pairs)(const float* from, long ld, int rows, int columns, const Pairs&, int begin, int end);
  void (*from_pairs)(const float* along, float* to, int columns);
  void (*update)(const Update&, float* w, float* s0, float* s1, const float* g, long n);
  void (*gather)(const Gather&, int begin, int end);
  void (*list_rows)(const float* x, long ld, int n, const Lists&, int begin, int end);
  void (*list_columns)(const float* x, long ld, int n, const Lists&, int begin, int end, float* scratch);
  void (*philox)(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);
  void (*normal)(uint64_t seed, uint64_t step, uint32_t stream, float* out, long begin, long end);
  void (*order_keys)(uint64_t seed, uint64_t epoch, uint64_t* keys, long rows);
  void (*latent_forward)(const Latent&, int begin, int end);
  void (*latent_backward)(const Latent&, int begin, int end);
  void (*latent_forward_sampled)(const Latent&, int begin, int end);
  void (*latent_backward_sampled)(const Latent&, int begin, int end);
  void (*dream_backward)(const Latent&, int begin, int end);
  void (*likelihood)(const Density&, int begin, int end);
  void (*likelihood_mean)(const Density&, int begin, int end);
  void (*likelihood_sample)(const Density&, int begin, int end);
};

// Levels compiled into this build that the machine can run, narrowest first.
struct Levels {
  const Kernels* table[4];
  int count;
};
Levels available_levels();

// The level forced by FASTVAE_SIMD_LEVEL, else the widest. Throws Unavailable when the forced one is not there.
const Kernels& select_kernels();

}  // namespace fastvae
