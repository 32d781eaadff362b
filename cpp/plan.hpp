// One network with its workspace: the fused operations and the fused loop, sequenced over the kernels of one level.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "thread_pool.hpp"

namespace fastvae {

struct Spec {  // fastvae.network.Network
  int data_dim, latent_dim;
  std::vector<int> encoder_hidden, decoder_hidden;
  Activation activation;
  Likelihood likelihood;
  bool sigmoid_mean;
  float logvar_floor;

  int heads() const { return likelihood == Likelihood::bernoulli ? 1 : 2; }
};

struct OptimizerSpec {  // fastvae.optimizer.Optimizer
  Rule rule;
  double learning_rate, momentum, beta1, beta2, epsilon;
  int64_t hold_steps;

  int slots() const { return rule == Rule::adam ? 2 : 1; }
  Update at(int64_t step, double decay) const;
};

// Zeroed, aligned to a cache line. Pages that are never written take no memory: evaluation does not pay for training.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t count);
  float* get() const { return first_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  float* first_ = nullptr;
};

// Row-major activations whose leading dimension covers whole panels: in float32, in bfloat16 pairs, or both.
struct Matrix {
  Floats memory, along, across;
  float* p = nullptr;
  long ld = 0;
  Pairs pairs = {};
};
enum Form { float32 = 1, paired = 2 };

// What a product reads: units and the distance between its rows.
struct Operand {
  const float* p;
  long ld;
};

struct Layer {
  int fan_in, fan_out, panels;
  size_t offset;  // of W in the flat parameters; b follows it
  int forward_phase, backward_phase, weights_phase;
  Floats w, b, w16, wt, s[2], bs[2], gw, gb;

  size_t bias_offset() const { return offset + static_cast<size_t>(fan_in) * fan_out; }
};

// Time that thread 0 has spent in each phase of the training steps.
class PhaseClock {
 public:
  struct Phase {
    std::string name;
    double seconds;
  };
  int add(std::string name);  // number of a new phase
  void start() { last_ = std::chrono::steady_clock::now(); }
  void stop(int phase) {  // what passed since the last start or stop
    auto now = std::chrono::steady_clock::now();
    phases_[phase].seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  const std::vector<Phase>& phases() const { return phases_; }

 private:
  std::vector<Phase> phases_;
  std::chrono::steady_clock::time_point last_;
};

struct Chain {  // encoder or decoder
  std::string name;
  std::vector<Layer> layers;
  std::vector<Matrix> y, dy;  // per layer: output, and gradient of its affine part
  Activation activation;
};

// Lists with their memory.
struct NonzeroLists {
  std::vector<int64_t> start, end;
  std::unique_ptr<int32_t[]> index;
  std::unique_ptr<float[]> value;
  Lists lists = {};
  void allocate(int n, int longest);
};

struct TrainArguments {
  float *params, *state;
  OptimizerSpec optimizer;
  Rows data;
  const int64_t* order;
  int64_t steps;
  int rows;
  float scale;
  Binarize binarize;
  uint64_t seed;
  int64_t step;
  Estimator estimator;
  double kl_weight;
  int64_t kl_warmup;
  double decay;
  double* stats;
  int64_t* done;

  bool sampled() const { return estimator == Estimator::sgvb_a || estimator == Estimator::iwae; }
  bool weighs_kl() const { return estimator == Estimator::sgvb_b || estimator == Estimator::sgvb_a; }
};

// Arrays are canonical (C-contiguous, unpadded); the caller has checked every shape.
class Plan {
 public:
  Plan(Spec spec, int rows, int draws, bool bf16, int threads);

  const Spec spec;
  const int rows, draws, threads;
  const bool bf16;  // matrix products of bfloat16, summed in float32; weights and optimizer state float32
  const Kernels& kernels;
  size_t parameter_count() const { return parameter_count_; }

  void gather(Gather g, int rows);
  void encoder_forward(const float* params, const float* x, int rows, const std::vector<float*>& hidden, float* mu,
                       float* logvar);
  void latent_forward(Latent g);
  void latent_forward_sampled(Latent g);
  void decoder_forward(const float* params, const float* z, int rows, const std::vector<float*>& hidden, float* out);
  void likelihood(const float* x, int x_rows, const float* out, int rows, float scale, float* log_px, float* dout);
  void likelihood_mean(const float* out, int rows, float* mean);
  void likelihood_sample(const float* out, int rows, uint64_t seed, uint64_t step, float* x);
  void decoder_backward(const float* params, const float* z, int rows, const std::vector<const float*>& hidden,
                        const float* dout, float* dz, float* grad);
  void latent_backward(Latent g);
  void latent_backward_sampled(Latent g);
  void encoder_backward(const float* params, const float* x, int rows, const std::vector<const float*>& hidden,
                        const float* dmu, const float* dlogvar, float* grad);
  void log_joint(const float* params, const float* x, int x_rows, const float* z, int rows, float* log_pxz, float* dz);
  void update(const Update& u, float* params, const float* grad, float* state);
  // `interrupted` is asked by the calling thread about every 50 ms, between the phases before a step's first update.
  void train_steps(const TrainArguments& t, const std::function<bool()>& interrupted);
  const std::vector<PhaseClock::Phase>& phases() const { return clock_.phases(); }

 private:
  void add_layers(Chain& chain, const std::vector<int>& dims, int rows, bool input_gradient, size_t& offset);
  Matrix matrix(int rows, int columns, int forms) const;
  int units(int n) const { return bf16 ? ceil_div(n, 2) : n; }
  Operand along(const Matrix& m) const { return bf16 ? Operand{m.pairs.along, m.pairs.along_ld} : Operand{m.p, m.ld}; }
  Operand across(const Matrix& m) const {
    return bf16 ? Operand{m.pairs.across, m.pairs.across_ld} : Operand{m.p, m.ld};
  }
  // This thread's rows: whole pairs.
  struct Share {
    int begin, end;
  };
  Share share(const Team& team, int rows) const;
  void to_pairs(const Matrix& m, int columns, int rows, Share share) const;  // in bf16 mode
  void load(const float* from, int columns, const Matrix& to, int rows, Share share) const;
  void store_hidden(const Chain& chain, const std::vector<float*>& hidden, Share share) const;
  void load_hidden(const Chain& chain, const std::vector<const float*>& hidden, int rows, Share share) const;
  Density density(int x_rows) const;
  bool decode(Team& team, Operand z, int rows, Density g, bool gradient);
  const float* sum_log_px(const Team& team, int rows, Share share) const;

  // Taken by every operation. A second call from the thread that holds it (a signal handler's) is an error, not a
  // deadlock.
  class Turn {
   public:
    explicit Turn(Plan& plan);
    ~Turn();

   private:
    Plan& plan_;
  };

  void pack(Team& team, Chain& chain, const float* params, bool transposed);
  void pack_state(Team& team, Chain& chain, const float* state, int slots);
  void unpack(Team& team, const Chain& chain, float* params, float* state, int slots);
  bool forward(Team& team, Chain& chain, Operand x, int rows, const Lists* lists = nullptr,
               const Lists* columns = nullptr, const Density* density = nullptr);
  bool backward(Team& team, Chain& chain, int rows);
  bool input_gradient(Team& team, const Layer& layer, const Matrix& dy, int rows, const Matrix* h,
                      Activation activation, Matrix& dx);
  void weight_gradients(Team& team, Chain& chain, Operand x, int rows, const Update* update, const Lists* lists);
  void add_gradients(Team& team, const Chain& chain, float* grad);
  void allocate_gradients(Chain& chain);
  bool step(Team& team, const TrainArguments& t, int64_t i);
  Latent latent(const TrainArguments& t, int64_t step);
  void draw_normals(const Team& team, const TrainArguments& t, int64_t step, Stream stream, float* out, int count);
  bool compare(Team& team, const TrainArguments& t, int64_t i, const Latent& latent, const Lists** columns);
  bool weigh(Team& team, int rows, const float* row_log_px, double& log_px, double& kl);
  bool apply_gradients(Team& team, const TrainArguments& t, int64_t i, Operand x, const Lists* columns);
  bool ascend_bound(Team& team, const TrainArguments& t, int64_t i);
  bool wake_and_sleep(Team& team, const TrainArguments& t, int64_t i);
  template <typename F>
  void run_tasks(const Team& team, int tasks, F f);
  void allocate_nonzeros(bool gradients);
  float* scratch(const Team& team) const { return scratch_.get() + team.id * scratch_size(); }
  size_t scratch_size() const { return static_cast<size_t>(rows + kernels.panel) * 2 * kernels.panel; }
  void list_rows(Operand x, Share rows) const;
  double share_of_nonzeros(int minibatch) const;
  const Lists* list_columns(const Team& team, Operand x, int minibatch) const;
  bool encode(Team& team, Operand x, int minibatch, const Lists* columns = nullptr);
  bool interrupt_due(const Team& team);
  bool proceed(Team& team, int phase);

  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
  ThreadPool pool_;
  Chain encoder_, decoder_;
  Matrix x_, z_, dz_;
  Floats eps_, kl_;
  Floats weights_;               // of the importance-weighted bound, [draws][rows]
  std::vector<double> weighed_;  // log p(x|z) of each of the rows, and what it exceeds their bounds by
  Floats dream_z_, dream_x_;     // of wake-sleep, without padding
  Floats log_px_;                // in parts: one per panel of logits, and a row of sums for each thread
  // Of the minibatch: units along its rows, by row and by column, for products forward; units across the rows (in
  // float32 the same), by column, for weight gradients.
  NonzeroLists along_rows_, along_columns_, across_columns_;
  Floats scratch_;  // of every thread, with the lists
  size_t parameter_count_ = 0;
  PhaseClock clock_;
  int gather_phase_, latent_forward_phase_, likelihood_phase_, latent_backward_phase_, wait_phase_;
  std::function<bool()> interrupted_;  // asked by thread 0 where a call may be cut short
  std::atomic<bool> cut_{false};       // tasks not begun are left out
  std::atomic<int64_t> stop_phase_{INT64_MAX};
};

}  // namespace fastvae
