// The fused loop: consecutive steps of Algorithm 1 on packed parameters, with nothing in between.
#include <algorithm>
#include <chrono>
#include <cmath>

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

// One step of Algorithm 1. False, with nothing updated, when the bound is not finite or an interrupt is due.
bool Plan::step(Team& team, const TrainArguments& t, int64_t i) {
  const int all = draws * t.rows, latent_dim = spec.latent_dim;
  const bool sampled = t.estimator == Estimator::sgvb_a;
  const int kl_terms = sampled ? all : t.rows;
  const int64_t now = t.step + i;
  double weight = t.kl_weight;
  if (t.kl_warmup > 0) weight *= std::min(1.0, static_cast<double>(now) / static_cast<double>(t.kl_warmup));

  Gather minibatch = {t.data, t.order + i * t.rows,       t.scale, t.binarize,
                      t.seed, static_cast<uint64_t>(now), x_.p,    x_.ld};
  const Share mine = share(team, t.rows), of_all = share(team, all);
  kernels.gather(minibatch, mine.begin, mine.end);
  to_pairs(x_, spec.data_dim, t.rows, mine);
  list_rows(along(x_), mine);
  int blocks = ceil_div(all * latent_dim, 4);
  kernels.normal(t.seed, minibatch.step, stream_latent, eps_.get(), 4L * team.begin(blocks),
                 std::min(4L * team.end(blocks), static_cast<long>(all) * latent_dim));
  if (!proceed(team, gather_phase_)) return false;

  const Lists* columns = list_columns(team, t.rows);
  if (!encode(team, along(x_), t.rows, bf16 ? nullptr : columns)) return false;

  Matrix &heads = encoder_.y.back(), &dheads = encoder_.dy.back();
  Latent latent = {};
  latent.mu = heads.p;
  latent.logvar = heads.p + latent_dim;
  latent.head_ld = heads.ld;
  latent.eps = eps_.get();
  latent.draws = draws;
  latent.rows = t.rows;
  latent.latent_dim = latent_dim;
  latent.z = z_.p;
  latent.z_ld = z_.ld;
  latent.kl = kl_.get();
  latent.dz = dz_.p;
  latent.dz_ld = dz_.ld;
  latent.kl_scale = static_cast<float>(weight / kl_terms);
  latent.dmu = dheads.p;
  latent.dlogvar = dheads.p + latent_dim;
  latent.dhead_ld = dheads.ld;
  (sampled ? kernels.latent_forward_sampled : kernels.latent_forward)(latent, mine.begin, mine.end);
  if (draws > 1) team.barrier();  // rows of z belong to other threads than rows of x
  to_pairs(z_, latent_dim, all, of_all);
  if (!proceed(team, latent_forward_phase_)) return false;

  Density g = density(t.rows);
  g.x = x_.p;
  g.x_ld = x_.ld;
  g.scale = static_cast<float>(1.0 / all);
  if (!decode(team, along(z_), all, g, true)) return false;

  // every thread adds the same few numbers in the same order, which costs less than another barrier
  const float* row_log_px = sum_log_px(team, all, {0, all});
  double log_px = 0, kl = 0;
  for (int r = 0; r < all; ++r) log_px += row_log_px[r];
  for (int m = 0; m < kl_terms; ++m) kl += kl_.get()[m];
  log_px /= all;
  kl /= kl_terms;
  if (team.id == 0) t.stats[2 * i] = log_px, t.stats[2 * i + 1] = kl;
  if (!std::isfinite(log_px - kl)) return false;

  if (!backward(team, decoder_, all)) return false;
  if (!input_gradient(team, decoder_.layers[0], decoder_.dy[0], all, nullptr, Activation::none, dz_)) return false;
  (sampled ? kernels.latent_backward_sampled : kernels.latent_backward)(latent, mine.begin, mine.end);
  to_pairs(dheads, 2 * latent_dim, t.rows, mine);
  if (!proceed(team, latent_backward_phase_)) return false;
  if (!backward(team, encoder_, t.rows)) return false;

  Update update = t.optimizer.at(now, t.decay);
  weight_gradients(team, decoder_, across(z_), all, &update, nullptr);
  weight_gradients(team, encoder_, across(x_), t.rows, &update, columns);
  team.barrier();
  if (team.id == 0) clock_.stop(wait_phase_);
  return true;
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
