// One network with its workspace: the fused operations and the fused loop, sequenced over the kernels of one level.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
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

// Zeroed, aligned to a cache line.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t count);
  float* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

// Row-major activations whose leading dimension covers whole panels.
struct Matrix {
  Floats memory;
  float* p = nullptr;
  long ld = 0;
};

struct Layer {
  int fan_in, fan_out, panels;
  size_t offset;  // of W in the flat parameters; b follows it
  Floats w, b, wt, s[2], bs[2], gw, gb;

  size_t bias_offset() const { return offset + static_cast<size_t>(fan_in) * fan_out; }
};

struct Chain {  // encoder or decoder
  std::vector<Layer> layers;
  std::vector<Matrix> y, dy;  // per layer: output, and gradient of its affine part
  Activation activation;
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
  double kl_weight;
  int64_t kl_warmup;
  double decay;
  double* stats;
  int64_t* done;
};

// Arrays are canonical (C-contiguous, unpadded); the caller has checked every shape.
class Plan {
 public:
  Plan(Spec spec, int rows, int draws, int threads);

  const Spec spec;
  const int rows, draws, threads;
  const Kernels& kernels;
  size_t parameter_count() const { return parameter_count_; }

  void gather(Gather g, int rows);
  void encoder_forward(const float* params, const float* x, int rows, const std::vector<float*>& hidden, float* mu,
                       float* logvar);
  void latent_forward(Latent g);
  void decoder_forward(const float* params, const float* z, int rows, const std::vector<float*>& hidden, float* out);
  void likelihood(const float* x, int x_rows, const float* out, int rows, float scale, float* log_px, float* dout);
  void likelihood_mean(const float* out, int rows, float* mean);
  void decoder_backward(const float* params, const float* z, int rows, const std::vector<const float*>& hidden,
                        const float* dout, float* dz, float* grad);
  void latent_backward(Latent g);
  void encoder_backward(const float* params, const float* x, int rows, const std::vector<const float*>& hidden,
                        const float* dmu, const float* dlogvar, float* grad);
  void log_joint(const float* params, const float* x, int x_rows, const float* z, int rows, float* log_pxz, float* dz);
  void update(const Update& u, float* params, const float* grad, float* state);
  // `interrupted` is asked by the calling thread about every 50 ms, between the phases before a step's first update.
  void train_steps(const TrainArguments& t, const std::function<bool()>& interrupted);

 private:
  void add_layers(Chain& chain, const std::vector<int>& dims, int rows, bool input_gradient, size_t& offset);
  Matrix matrix(int rows, int columns) const;
  Density density(int x_rows) const;

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
  bool forward(Team& team, Chain& chain, const float* x, long x_ld, int rows, const Nonzeros* nonzeros);
  bool backward(Team& team, Chain& chain, int rows);
  bool input_gradient(Team& team, const Layer& layer, const Matrix& dy, int rows, const Matrix* h,
                      Activation activation, Matrix& dx);
  void weight_gradients(Team& team, Chain& chain, const float* x, long x_ld, int rows, const Update* update,
                        const Nonzeros* nonzeros);
  void add_gradients(Team& team, const Chain& chain, float* grad);
  void allocate_gradients(Chain& chain);
  bool step(Team& team, const TrainArguments& t, int64_t i);
  template <typename F>
  void run_tasks(const Team& team, int tasks, F f);
  void allocate_nonzeros();
  const Nonzeros* few_nonzeros(int minibatch) const;
  bool interrupt_due(const Team& team);
  bool proceed(Team& team);

  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
  ThreadPool pool_;
  Chain encoder_, decoder_;
  Matrix x_, z_, dz_;
  Floats eps_, kl_, log_px_;
  Nonzeros nonzeros_ = {};  // of the minibatch; its lists lie in the two vectors
  std::vector<int32_t> nonzero_integers_;
  std::vector<float> nonzero_values_;
  size_t parameter_count_ = 0;
  std::function<bool()> interrupted_;  // asked by thread 0 where a call may be cut short
  std::atomic<bool> cut_{false};       // tasks not begun are left out
  std::atomic<int64_t> stop_phase_{INT64_MAX};
};

}  // namespace fastvae
