// The fused loop: consecutive steps of Algorithm 1, or of wake-sleep, on packed parameters, with nothing in between.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "plan.hpp"

namespace fastvae {

Update OptimizerSpec::at(int64_t step, double decay) const {
  Update u = {};
  u.rule = rule == Rule::adagrad && step < hold_steps ? Rule::hold : rule;
  double rate = learning_rate, t = static_cast<double>(step) + 1;
  if (rule == Rule::adam) {
    rate /= 1 - std::pow(beta1, t);
    u.root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  }
  u.rate = static_cast<float>(rate);
  u.beta1 = static_cast<float>(beta1);
  u.gain1 = static_cast<float>(1 - beta1);
  u.beta2 = static_cast<float>(beta2);
  u.gain2 = static_cast<float>(1 - beta2);
  u.momentum = static_cast<float>(momentum);
  u.epsilon = static_cast<float>(epsilon);
  u.decay = static_cast<float>(decay);
  return u;
}

// The heads, their gradients and what lies between them and the decoder, of a step.
Latent Plan::latent(const TrainArguments& t, int64_t step) {
  Matrix &heads = encoder_.y.back(), &dheads = encoder_.dy.back();
  double weight = t.kl_weight;
  if (t.kl_warmup > 0) weight *= std::min(1.0, static_cast<double>(step) / static_cast<double>(t.kl_warmup));
  Latent g = {};
  g.mu = heads.p;
  g.logvar = heads.p + spec.latent_dim;
  g.head_ld = heads.ld;
  g.eps = eps_.get();
  g.draws = draws;
  g.rows = t.rows;
  g.latent_dim = spec.latent_dim;
  g.z = z_.p;
  g.z_ld = z_.ld;
  g.kl = kl_.get();
  g.dz = dz_.p;
  g.dz_ld = dz_.ld;
  g.kl_scale = static_cast<float>(weight / (t.sampled() ? draws * t.rows : t.rows));
  g.dmu = dheads.p;
  g.dlogvar = dheads.p + spec.latent_dim;
  g.dhead_ld = dheads.ld;
  if (t.estimator == Estimator::iwae) g.weight = weights_.get();
  return g;
}

// This thread's share of `count` standard normals.
void Plan::draw_normals(const Team& team, const TrainArguments& t, int64_t step, Stream stream, float* out, int count) {
  const int blocks = ceil_div(count, 4);
  kernels.normal(t.seed, static_cast<uint64_t>(step), stream, out, 4L * team.begin(blocks),
                 std::min(4L * team.end(blocks), static_cast<long>(count)));
}

// A minibatch through both models, up to its bound and the gradient of log p(x|z) by the decoder's heads; its nonzeros
// by column in `columns`, where asked for. False when the bound is not finite or an interrupt is due.
bool Plan::compare(Team& team, const TrainArguments& t, int64_t i, const Latent& latent, const Lists** columns) {
  const int all = draws * t.rows, latent_dim = spec.latent_dim;
  const int kl_terms = t.sampled() ? all : t.rows;
  const int64_t now = t.step + i;

  Gather minibatch = {t.data, t.order + i * t.rows,       t.scale, t.binarize,
                      t.seed, static_cast<uint64_t>(now), x_.p,    x_.ld};
  const Share mine = share(team, t.rows), of_all = share(team, all);
  kernels.gather(minibatch, mine.begin, mine.end);
  to_pairs(x_, spec.data_dim, t.rows, mine);
  list_rows(along(x_), mine);
  draw_normals(team, t, now, stream_latent, eps_.get(), all * latent_dim);
  if (!proceed(team, gather_phase_)) return false;

  if (columns) *columns = list_columns(team, across(x_), t.rows);
  if (!encode(team, along(x_), t.rows, columns && !bf16 ? *columns : nullptr)) return false;

  (t.sampled() ? kernels.latent_forward_sampled : kernels.latent_forward)(latent, mine.begin, mine.end);
  if (draws > 1) team.barrier();  // rows of z belong to other threads than rows of x
  to_pairs(z_, latent_dim, all, of_all);
  if (!proceed(team, latent_forward_phase_)) return false;

  Density g = density(t.rows);
  g.x = x_.p;
  g.x_ld = x_.ld;
  g.weighed = t.estimator == Estimator::iwae;
  g.scale = g.weighed ? 1.0f : static_cast<float>(1.0 / all);
  if (!decode(team, along(z_), all, g, true)) return false;

  // every thread adds the same few numbers in the same order, which costs less than another barrier
  const float* row_log_px = sum_log_px(team, all, {0, all});
  double log_px = 0, kl = 0;
  if (g.weighed) {
    if (!weigh(team, t.rows, row_log_px, log_px, kl)) return false;
  } else {
    for (int r = 0; r < all; ++r) log_px += row_log_px[r];
    for (int m = 0; m < kl_terms; ++m) kl += kl_.get()[m];
    log_px /= all;
    kl /= kl_terms;
  }
  if (team.id == 0) t.stats[2 * i] = log_px, t.stats[2 * i + 1] = kl;
  return std::isfinite(log_px - kl);
}

// From log w = log p(x|z) - [log q(z|x) - log p(z)] of every draw to the weights w / sum w, their share of the
// minibatch in them, of the gradient by the decoder's heads, and of the statistics. False when an interrupt is due.
bool Plan::weigh(Team& team, int rows, const float* row_log_px, double& log_px, double& kl) {
  const int all = draws * rows;
  float* weights = weights_.get();
  const Share mine = share(team, rows), of_all = share(team, all);
  for (int m = mine.begin; m < mine.end; ++m) {
    auto log_w = [&](int r) { return static_cast<double>(row_log_px[r]) - kl_.get()[r]; };
    double largest = -std::numeric_limits<double>::infinity(), total = 0, mean = 0;
    for (int r = m; r < all; r += rows) largest = std::max(largest, log_w(r));
    for (int r = m; r < all; r += rows) total += std::exp(log_w(r) - largest);
    for (int r = m; r < all; r += rows) {
      const double weight = std::exp(log_w(r) - largest) / total;
      mean += weight * row_log_px[r];
      weights[r] = static_cast<float>(weight / rows);
    }
    weighed_[m] = mean;
    weighed_[rows + m] = mean - (largest + std::log(total / draws));
  }
  team.barrier();
  for (int m = 0; m < rows; ++m) log_px += weighed_[m] / rows, kl += weighed_[rows + m] / rows;
  Matrix& dout = decoder_.dy.back();
  const int columns = spec.heads() * spec.data_dim;
  for (int r = of_all.begin; r < of_all.end; ++r) {
    const float weight = weights[r];
    for (int j = 0; j < columns; ++j) dout.p[r * dout.ld + j] *= weight;
  }
  to_pairs(dout, columns, all, of_all);
  return proceed(team, likelihood_phase_);
}

// From the gradients of the encoder's heads, and of every layer of the decoder, to the step along all of them; x is
// what the encoder has read. False, with nothing updated, when an interrupt is due.
bool Plan::apply_gradients(Team& team, const TrainArguments& t, int64_t i, Operand x, const Lists* columns) {
  to_pairs(encoder_.dy.back(), 2 * spec.latent_dim, t.rows, share(team, t.rows));
  if (!proceed(team, latent_backward_phase_)) return false;
  if (!backward(team, encoder_, t.rows)) return false;
  const Update u = t.optimizer.at(t.step + i, t.decay);
  weight_gradients(team, decoder_, across(z_), draws * t.rows, &u, nullptr);
  weight_gradients(team, encoder_, x, t.rows, &u, columns);
  team.barrier();
  if (team.id == 0) clock_.stop(wait_phase_);
  return true;
}

// One step of Algorithm 1.
bool Plan::ascend_bound(Team& team, const TrainArguments& t, int64_t i) {
  const int all = draws * t.rows;
  const Share mine = share(team, t.rows);
  const Latent g = latent(t, t.step + i);
  const Lists* columns;
  if (!compare(team, t, i, g, &columns)) return false;

  if (!backward(team, decoder_, all)) return false;
  if (!input_gradient(team, decoder_.layers[0], decoder_.dy[0], all, nullptr, Activation::none, dz_)) return false;
  (t.sampled() ? kernels.latent_backward_sampled : kernels.latent_backward)(g, mine.begin, mine.end);
  return apply_gradients(team, t, i, across(x_), columns);
}

// One step of wake-sleep. The dream comes first: it depends on parameters and noise alone, and so every gradient is
// applied where it stands.
bool Plan::wake_and_sleep(Team& team, const TrainArguments& t, int64_t i) {
  const int all = draws * t.rows, data_dim = spec.data_dim, latent_dim = spec.latent_dim;
  const int64_t now = t.step + i;
  const Share mine = share(team, t.rows);
  draw_normals(team, t, now, stream_dream_latent, dream_z_.get(), t.rows * latent_dim);
  team.barrier();
  if (bf16) load(dream_z_.get(), latent_dim, z_, t.rows, mine), team.barrier();
  if (!forward(team, decoder_, bf16 ? along(z_) : Operand{dream_z_.get(), latent_dim}, t.rows)) return false;
  Density dream = density(t.rows);
  dream.out = decoder_.y.back().p;
  dream.out_ld = decoder_.y.back().ld;
  dream.mean = dream_x_.get();
  dream.mean_ld = data_dim;
  dream.seed = t.seed;
  dream.step = static_cast<uint64_t>(now);
  kernels.likelihood_sample(dream, mine.begin, mine.end);

  Latent g = latent(t, now);
  if (!compare(team, t, i, g, nullptr)) return false;
  if (!backward(team, decoder_, all)) return false;

  if (bf16) load(dream_x_.get(), data_dim, x_, t.rows, mine);
  const Operand x = bf16 ? along(x_) : Operand{dream_x_.get(), data_dim}, x_across = bf16 ? across(x_) : x;
  list_rows(x, mine);
  team.barrier();
  const Lists* columns = list_columns(team, x_across, t.rows);
  if (!encode(team, x, t.rows, bf16 ? nullptr : columns)) return false;
  g.z = dream_z_.get();
  g.z_ld = latent_dim;
  kernels.dream_backward(g, mine.begin, mine.end);
  return apply_gradients(team, t, i, x_across, columns);
}

// False, with nothing updated, when the bound is not finite or an interrupt is due.
bool Plan::step(Team& team, const TrainArguments& t, int64_t i) {
  return t.estimator == Estimator::wake_sleep ? wake_and_sleep(team, t, i) : ascend_bound(team, t, i);
}

void Plan::train_steps(const TrainArguments& t, const std::function<bool()>& interrupted) {
  Turn turn(*this);
  int slots = t.optimizer.slots();
  for (Chain* chain : {&encoder_, &decoder_})
    for (Layer& layer : chain->layers)
      for (int slot = 0; slot < slots; ++slot)
        if (!layer.s[slot].get()) {
          layer.s[slot] = Floats(static_cast<size_t>(layer.panels) * kernels.panel * layer.fan_in);
          layer.bs[slot] = Floats(static_cast<size_t>(layer.panels) * kernels.panel);
        }

  struct Reset {  // also when the threads cannot be started
    Plan& plan;
    ~Reset() {
      plan.interrupted_ = nullptr;
      plan.cut_ = false;
      plan.stop_phase_ = INT64_MAX;
    }
  } reset{*this};
  allocate_nonzeros(true);
  if (t.estimator == Estimator::iwae && weighed_.empty()) {
    weights_ = Floats(static_cast<size_t>(draws) * rows);
    weighed_.resize(2 * static_cast<size_t>(rows));
  }
  if (t.estimator == Estimator::wake_sleep && !dream_x_.get()) {
    dream_z_ = Floats(static_cast<size_t>(rows) * spec.latent_dim);
    dream_x_ = Floats(static_cast<size_t>(rows) * spec.data_dim);
  }
  auto asked = std::chrono::steady_clock::now();
  interrupted_ = [&] {
    auto now = std::chrono::steady_clock::now();
    if (now - asked < std::chrono::milliseconds(50)) return false;
    asked = now;
    return interrupted();
  };
  pool_.run([&](Team& team) {
    for (Chain* chain : {&encoder_, &decoder_}) {
      pack(team, *chain, t.params, true);
      pack_state(team, *chain, t.state, slots);
    }
    team.barrier();
    if (team.id == 0) clock_.start();
    for (int64_t i = 0; i < t.steps && step(team, t, i); ++i)
      if (team.id == 0) *t.done = i + 1;
    team.barrier();
    for (Chain* chain : {&encoder_, &decoder_}) unpack(team, *chain, t.params, t.state, slots);
  });
}

}  // namespace fastvae
