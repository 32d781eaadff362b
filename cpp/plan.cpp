#include "plan.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace fastvae {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// rows x columns between two leading dimensions, this thread's share of the rows
void copy_rows(const Team& team, const float* from, long from_ld, float* to, long to_ld, int rows, int columns) {
  for (int r = team.begin(rows); r < team.end(rows); ++r)
    std::memcpy(to + r * to_ld, from + r * from_ld, sizeof(float) * columns);
}

// Calls f(packed, flat, columns) for each row of W and for b, this thread's share of the panels.
template <typename F>
void for_packed_rows(const Team& team, const Layer& layer, int panel, F f) {
  for (int p = team.begin(layer.panels); p < team.end(layer.panels); ++p) {
    int columns = std::min(panel, layer.fan_out - p * panel);
    for (int k = 0; k < layer.fan_in; ++k)
      f(false, (static_cast<size_t>(p) * layer.fan_in + k) * panel,
        layer.offset + static_cast<size_t>(k) * layer.fan_out + p * panel, columns);
    f(true, static_cast<size_t>(p) * panel, layer.bias_offset() + p * panel, columns);
  }
}

}  // namespace

Floats::Floats(size_t count) {
  size_t bytes = (std::max<size_t>(count, 1) * sizeof(float) + 63) / 64 * 64;
  memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), 0, bytes);
}

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

Plan::Plan(Spec s, int rows, int draws, int threads)
    : spec(std::move(s)), rows(rows), draws(draws), threads(threads), kernels(select_kernels()), pool_(threads) {
  auto dims = [](int first, const std::vector<int>& hidden, int last) {
    std::vector<int> d = {first};
    d.insert(d.end(), hidden.begin(), hidden.end());
    d.push_back(last);
    return d;
  };
  int all = rows * draws;
  encoder_.activation = decoder_.activation = spec.activation;
  add_layers(encoder_, dims(spec.data_dim, spec.encoder_hidden, 2 * spec.latent_dim), rows, false, parameter_count_);
  add_layers(decoder_, dims(spec.latent_dim, spec.decoder_hidden, spec.heads() * spec.data_dim), all, true,
             parameter_count_);
  x_ = matrix(rows, spec.data_dim);
  z_ = matrix(all, spec.latent_dim);
  dz_ = matrix(all, spec.latent_dim);
  eps_ = Floats(static_cast<size_t>(all) * spec.latent_dim);
  kl_ = Floats(rows);
  log_px_ = Floats(all);
}

Matrix Plan::matrix(int rows, int columns) const {
  Matrix m;
  m.ld = static_cast<long>(ceil_div(columns, kernels.panel)) * kernels.panel;
  if (m.ld % 256 == 0) m.ld += 16;  // rows a multiple of 1 KB apart fall into few sets of the L1 cache
  m.memory = Floats(static_cast<size_t>(rows) * m.ld);
  m.p = m.memory.get();
  return m;
}

void Plan::add_layers(Chain& chain, const std::vector<int>& dims, int rows, bool input_gradient, size_t& offset) {
  int panel = kernels.panel;
  for (size_t i = 0; i + 1 < dims.size(); ++i) {
    Layer layer;
    layer.fan_in = dims[i];
    layer.fan_out = dims[i + 1];
    layer.panels = ceil_div(layer.fan_out, panel);
    layer.offset = offset;
    size_t columns = static_cast<size_t>(layer.panels) * panel;
    layer.w = Floats(columns * layer.fan_in);
    layer.b = Floats(columns);
    if (i || input_gradient) layer.wt = Floats(columns * ceil_div(layer.fan_in, panel) * panel);
    offset = layer.bias_offset() + layer.fan_out;
    chain.y.push_back(matrix(rows, layer.fan_out));
    chain.dy.push_back(matrix(rows, layer.fan_out));
    chain.layers.push_back(std::move(layer));
  }
}

void Plan::pack(Team& team, Chain& chain, const float* params) {
  for (Layer& layer : chain.layers) {
    for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
      std::memcpy((bias ? layer.b : layer.w).get() + packed, params + flat, sizeof(float) * columns);
    });
    if (layer.wt.get())
      kernels.transpose(layer.w.get(), layer.wt.get(), layer.fan_in, layer.panels, team.begin(layer.panels),
                        team.end(layer.panels));
  }
}

void Plan::pack_state(Team& team, Chain& chain, const float* state, int slots) {
  for (int slot = 0; slot < slots; ++slot, state += parameter_count_)
    for (Layer& layer : chain.layers)
      for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
        std::memcpy((bias ? layer.bs : layer.s)[slot].get() + packed, state + flat, sizeof(float) * columns);
      });
}

void Plan::unpack(Team& team, const Chain& chain, float* params, float* state, int slots) {
  for (const Layer& layer : chain.layers)
    for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
      std::memcpy(params + flat, (bias ? layer.b : layer.w).get() + packed, sizeof(float) * columns);
      for (int slot = 0; slot < slots; ++slot)
        std::memcpy(state + slot * parameter_count_ + flat, (bias ? layer.bs : layer.s)[slot].get() + packed,
                    sizeof(float) * columns);
    });
}

// Ends a phase that may be the last: false on every thread when an interrupt is due. Thread 0 names the phase to stop
// at, so that a thread still leaving this phase is not misled by a decision taken in the next.
bool Plan::proceed(Team& team) {
  int64_t phase = ++team.phase;
  if (team.id == 0 && interrupted_ && interrupted_()) stop_phase_.store(phase, std::memory_order_relaxed);
  team.barrier();
  return phase < stop_phase_.load(std::memory_order_relaxed);
}

// y_i = f(y_{i-1} W_i + b_i), the last layer affine
bool Plan::forward(Team& team, Chain& chain, const float* x, long x_ld, int rows) {
  for (size_t i = 0; i < chain.layers.size(); ++i) {
    const Layer& layer = chain.layers[i];
    Affine g = {};
    g.a = i ? chain.y[i - 1].p : x;
    g.a_ld = i ? chain.y[i - 1].ld : x_ld;
    g.b = layer.w.get();
    g.b_rows = layer.fan_in;
    g.bias = layer.b.get();
    g.activation = i + 1 < chain.layers.size() ? chain.activation : Activation::none;
    g.c = chain.y[i].p;
    g.c_ld = chain.y[i].ld;
    g.rows = rows;
    g.depth = layer.fan_in;
    g.panels = layer.panels;
    int tasks = kernels.affine_tasks(g);
    kernels.affine(g, team.begin(tasks), team.end(tasks));
    if (!proceed(team)) return false;
  }
  return true;
}

// dx = dy W^T, times f'(h) when h is given
bool Plan::input_gradient(Team& team, const Layer& layer, const Matrix& dy, int rows, const Matrix* h,
                          Activation activation, Matrix& dx) {
  Affine g = {};
  g.a = dy.p;
  g.a_ld = dy.ld;
  g.b = layer.wt.get();
  g.b_rows = layer.panels * kernels.panel;
  g.h = h ? h->p : nullptr;
  g.h_ld = h ? h->ld : 0;
  g.activation = activation;
  g.c = dx.p;
  g.c_ld = dx.ld;
  g.rows = rows;
  g.depth = layer.fan_out;
  g.panels = ceil_div(layer.fan_in, kernels.panel);
  int tasks = kernels.affine_tasks(g);
  kernels.affine(g, team.begin(tasks), team.end(tasks));
  return proceed(team);
}

bool Plan::backward(Team& team, Chain& chain, int rows) {
  for (size_t i = chain.layers.size() - 1; i > 0; --i)
    if (!input_gradient(team, chain.layers[i], chain.dy[i], rows, &chain.y[i - 1], chain.activation, chain.dy[i - 1]))
      return false;
  return true;
}

// With `update` each tile of dW is applied where it stands; without, stored in gw and gb.
void Plan::weight_gradients(Team& team, Chain& chain, const float* x, long x_ld, int rows, const Update* update) {
  for (size_t i = 0; i < chain.layers.size(); ++i) {
    Layer& layer = chain.layers[i];
    WeightGradient g = {};
    g.x = i ? chain.y[i - 1].p : x;
    g.x_ld = i ? chain.y[i - 1].ld : x_ld;
    g.dy = chain.dy[i].p;
    g.dy_ld = chain.dy[i].ld;
    g.rows = rows;
    g.fan_in = layer.fan_in;
    g.panels = layer.panels;
    g.w = layer.w.get();
    g.b = layer.b.get();
    g.wt = layer.wt.get();
    for (int slot = 0; slot < 2; ++slot) {
      g.ws[slot] = layer.s[slot].get();
      g.bs[slot] = layer.bs[slot].get();
    }
    if (update)
      g.update = *update;
    else
      g.gw = layer.gw.get(), g.gb = layer.gb.get();
    int tasks = kernels.weight_tasks(g);
    kernels.weight_gradient(g, team.begin(tasks), team.end(tasks));
  }
  team.barrier();
}

void Plan::allocate_gradients(Chain& chain) {
  for (Layer& layer : chain.layers) {
    if (layer.gw.get()) continue;
    size_t columns = static_cast<size_t>(layer.panels) * kernels.panel;
    layer.gw = Floats(columns * layer.fan_in);
    layer.gb = Floats(columns);
  }
}

void Plan::add_gradients(Team& team, const Chain& chain, float* grad) {
  for (const Layer& layer : chain.layers)
    for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
      const float* g = (bias ? layer.gb : layer.gw).get() + packed;
      for (int j = 0; j < columns; ++j) grad[flat + j] += g[j];
    });
}

Density Plan::density(int x_rows) const {
  Density g = {};
  g.likelihood = spec.likelihood;
  g.sigmoid_mean = spec.sigmoid_mean;
  g.logvar_floor = spec.logvar_floor;
  g.data_dim = spec.data_dim;
  g.x_rows = x_rows;
  return g;
}

void Plan::gather(Gather g, int rows) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_.run([&](Team& team) { kernels.gather(g, team.begin(rows), team.end(rows)); });
}

void Plan::encoder_forward(const float* params, const float* x, int rows, const std::vector<float*>& hidden, float* mu,
                           float* logvar) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_.run([&](Team& team) {
    pack(team, encoder_, params);
    team.barrier();
    forward(team, encoder_, x, spec.data_dim, rows);
    for (size_t i = 0; i < hidden.size(); ++i)
      copy_rows(team, encoder_.y[i].p, encoder_.y[i].ld, hidden[i], spec.encoder_hidden[i], rows,
                spec.encoder_hidden[i]);
    const Matrix& heads = encoder_.y.back();
    copy_rows(team, heads.p, heads.ld, mu, spec.latent_dim, rows, spec.latent_dim);
    copy_rows(team, heads.p + spec.latent_dim, heads.ld, logvar, spec.latent_dim, rows, spec.latent_dim);
  });
}

void Plan::latent_forward(Latent g) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_.run([&](Team& team) { kernels.latent_forward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::latent_backward(Latent g) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_.run([&](Team& team) { kernels.latent_backward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::decoder_forward(const float* params, const float* z, int rows, const std::vector<float*>& hidden,
                           float* out) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_.run([&](Team& team) {
    pack(team, decoder_, params);
    team.barrier();
    forward(team, decoder_, z, spec.latent_dim, rows);
    for (size_t i = 0; i < hidden.size(); ++i)
      copy_rows(team, decoder_.y[i].p, decoder_.y[i].ld, hidden[i], spec.decoder_hidden[i], rows,
                spec.decoder_hidden[i]);
    int columns = spec.heads() * spec.data_dim;
    copy_rows(team, decoder_.y.back().p, decoder_.y.back().ld, out, columns, rows, columns);
  });
}

void Plan::likelihood(const float* x, int x_rows, const float* out, int rows, float scale, float* log_px, float* dout) {
  std::lock_guard<std::mutex> lock(mutex_);
  Density g = density(x_rows);
  g.x = x;
  g.x_ld = spec.data_dim;
  g.out = out;
  g.out_ld = g.dout_ld = static_cast<long>(spec.heads()) * spec.data_dim;
  g.scale = scale;
  g.log_px = log_px;
  g.dout = dout;
  pool_.run([&](Team& team) { kernels.likelihood(g, team.begin(rows), team.end(rows)); });
}

void Plan::likelihood_mean(const float* out, int rows, float* mean) {
  std::lock_guard<std::mutex> lock(mutex_);
  Density g = density(1);
  g.out = out;
  g.out_ld = static_cast<long>(spec.heads()) * spec.data_dim;
  g.mean = mean;
  g.mean_ld = spec.data_dim;
  pool_.run([&](Team& team) { kernels.likelihood_mean(g, team.begin(rows), team.end(rows)); });
}

void Plan::decoder_backward(const float* params, const float* z, int rows, const std::vector<const float*>& hidden,
                            const float* dout, float* dz, float* grad) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (grad) allocate_gradients(decoder_);
  pool_.run([&](Team& team) {
    pack(team, decoder_, params);
    for (size_t i = 0; i < hidden.size(); ++i)
      copy_rows(team, hidden[i], spec.decoder_hidden[i], decoder_.y[i].p, decoder_.y[i].ld, rows,
                spec.decoder_hidden[i]);
    int columns = spec.heads() * spec.data_dim;
    copy_rows(team, dout, columns, decoder_.dy.back().p, decoder_.dy.back().ld, rows, columns);
    team.barrier();
    backward(team, decoder_, rows);
    if (dz) {
      input_gradient(team, decoder_.layers[0], decoder_.dy[0], rows, nullptr, Activation::none, dz_);
      copy_rows(team, dz_.p, dz_.ld, dz, spec.latent_dim, rows, spec.latent_dim);
    }
    if (grad) {
      weight_gradients(team, decoder_, z, spec.latent_dim, rows, nullptr);
      add_gradients(team, decoder_, grad);
    }
  });
}

void Plan::encoder_backward(const float* params, const float* x, int rows, const std::vector<const float*>& hidden,
                            const float* dmu, const float* dlogvar, float* grad) {
  std::lock_guard<std::mutex> lock(mutex_);
  allocate_gradients(encoder_);
  pool_.run([&](Team& team) {
    pack(team, encoder_, params);
    for (size_t i = 0; i < hidden.size(); ++i)
      copy_rows(team, hidden[i], spec.encoder_hidden[i], encoder_.y[i].p, encoder_.y[i].ld, rows,
                spec.encoder_hidden[i]);
    const Matrix& dheads = encoder_.dy.back();
    copy_rows(team, dmu, spec.latent_dim, dheads.p, dheads.ld, rows, spec.latent_dim);
    copy_rows(team, dlogvar, spec.latent_dim, dheads.p + spec.latent_dim, dheads.ld, rows, spec.latent_dim);
    team.barrier();
    backward(team, encoder_, rows);
    weight_gradients(team, encoder_, x, spec.data_dim, rows, nullptr);
    add_gradients(team, encoder_, grad);
  });
}

void Plan::log_joint(const float* params, const float* x, int x_rows, const float* z, int rows, float* log_pxz,
                     float* dz) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Matrix &out = decoder_.y.back(), &dout = decoder_.dy.back();
  Density g = density(x_rows);
  g.x = x;
  g.x_ld = spec.data_dim;
  g.out = out.p;
  g.out_ld = out.ld;
  g.scale = 1;
  g.log_px = log_pxz;
  g.dout = dz ? dout.p : nullptr;
  g.dout_ld = dout.ld;
  pool_.run([&](Team& team) {
    pack(team, decoder_, params);
    team.barrier();
    forward(team, decoder_, z, spec.latent_dim, rows);
    kernels.likelihood(g, team.begin(rows), team.end(rows));
    if (dz) {
      team.barrier();
      backward(team, decoder_, rows);
      input_gradient(team, decoder_.layers[0], decoder_.dy[0], rows, nullptr, Activation::none, dz_);
    }
    constexpr float log_two_pi = 1.83787707f;
    for (int r = team.begin(rows); r < team.end(rows); ++r) {
      const float* zr = z + static_cast<size_t>(r) * spec.latent_dim;
      float twice_negative = 0;
      for (int j = 0; j < spec.latent_dim; ++j) {
        twice_negative += log_two_pi + zr[j] * zr[j];
        if (dz) dz[static_cast<size_t>(r) * spec.latent_dim + j] = dz_.p[r * dz_.ld + j] - zr[j];
      }
      log_pxz[r] -= 0.5f * twice_negative;
    }
  });
}

void Plan::update(const Update& u, float* params, const float* grad, float* state) {
  std::lock_guard<std::mutex> lock(mutex_);
  constexpr size_t block = 4096;  // shares cut at whole vectors
  int blocks = static_cast<int>((parameter_count_ + block - 1) / block);
  pool_.run([&](Team& team) {
    size_t begin = team.begin(blocks) * block, end = std::min(team.end(blocks) * block, parameter_count_);
    if (begin >= end) return;
    float* second = u.rule == Rule::adam ? state + parameter_count_ + begin : nullptr;
    kernels.update(u, params + begin, state + begin, second, grad + begin, static_cast<long>(end - begin));
  });
}

// One step of Algorithm 1. False, with nothing updated, when the bound is not finite or an interrupt is due.
bool Plan::step(Team& team, const TrainArguments& t, int64_t i) {
  const int all = draws * t.rows, latent_dim = spec.latent_dim;
  const int64_t now = t.step + i;
  double weight = t.kl_weight;
  if (t.kl_warmup > 0) weight *= std::min(1.0, static_cast<double>(now) / static_cast<double>(t.kl_warmup));

  Gather minibatch = {t.data, t.order + i * t.rows,       t.scale, t.binarize,
                      t.seed, static_cast<uint64_t>(now), x_.p,    x_.ld};
  kernels.gather(minibatch, team.begin(t.rows), team.end(t.rows));
  int blocks = ceil_div(all * latent_dim, 4);
  kernels.normal(t.seed, minibatch.step, stream_latent, eps_.get(), 4L * team.begin(blocks),
                 std::min(4L * team.end(blocks), static_cast<long>(all) * latent_dim));
  if (!proceed(team)) return false;

  if (!forward(team, encoder_, x_.p, x_.ld, t.rows)) return false;

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
  latent.kl_scale = static_cast<float>(weight / t.rows);
  latent.dmu = dheads.p;
  latent.dlogvar = dheads.p + latent_dim;
  latent.dhead_ld = dheads.ld;
  kernels.latent_forward(latent, team.begin(t.rows), team.end(t.rows));
  if (!proceed(team)) return false;

  if (!forward(team, decoder_, z_.p, z_.ld, all)) return false;

  Matrix &out = decoder_.y.back(), &dout = decoder_.dy.back();
  Density g = density(t.rows);
  g.x = x_.p;
  g.x_ld = x_.ld;
  g.out = out.p;
  g.out_ld = out.ld;
  g.scale = static_cast<float>(1.0 / all);
  g.log_px = log_px_.get();
  g.dout = dout.p;
  g.dout_ld = dout.ld;
  kernels.likelihood(g, team.begin(all), team.end(all));
  if (!proceed(team)) return false;

  // every thread adds the same few numbers in the same order, which costs less than another barrier
  double log_px = 0, kl = 0;
  for (int r = 0; r < all; ++r) log_px += log_px_.get()[r];
  for (int m = 0; m < t.rows; ++m) kl += kl_.get()[m];
  log_px /= all;
  kl /= t.rows;
  if (team.id == 0) t.stats[2 * i] = log_px, t.stats[2 * i + 1] = kl;
  if (!std::isfinite(log_px - kl)) return false;

  if (!backward(team, decoder_, all)) return false;
  if (!input_gradient(team, decoder_.layers[0], decoder_.dy[0], all, nullptr, Activation::none, dz_)) return false;
  kernels.latent_backward(latent, team.begin(t.rows), team.end(t.rows));
  if (!proceed(team)) return false;
  if (!backward(team, encoder_, t.rows)) return false;

  Update update = t.optimizer.at(now, t.decay);
  weight_gradients(team, decoder_, z_.p, z_.ld, all, &update);
  weight_gradients(team, encoder_, x_.p, x_.ld, t.rows, &update);
  return true;
}

void Plan::train_steps(const TrainArguments& t, const std::function<bool()>& interrupted) {
  std::lock_guard<std::mutex> lock(mutex_);
  int slots = t.optimizer.slots();
  for (Chain* chain : {&encoder_, &decoder_})
    for (Layer& layer : chain->layers)
      for (int slot = 0; slot < slots; ++slot)
        if (!layer.s[slot].get()) {
          layer.s[slot] = Floats(static_cast<size_t>(layer.panels) * kernels.panel * layer.fan_in);
          layer.bs[slot] = Floats(static_cast<size_t>(layer.panels) * kernels.panel);
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
      pack(team, *chain, t.params);
      pack_state(team, *chain, t.state, slots);
    }
    team.barrier();
    for (int64_t i = 0; i < t.steps && step(team, t, i); ++i)
      if (team.id == 0) *t.done = i + 1;
    team.barrier();
    for (Chain* chain : {&encoder_, &decoder_}) unpack(team, *chain, t.params, t.state, slots);
  });
  interrupted_ = nullptr;
  stop_phase_ = INT64_MAX;
}

}  // namespace fastvae
