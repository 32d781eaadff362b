// The workspace, the packed form of the parameters, and the phases that every operation is made of.
#include "plan.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace fastvae {
namespace {

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

void Plan::pack(Team& team, Chain& chain, const float* params, bool transposed) {
  for (Layer& layer : chain.layers) {
    for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
      std::memcpy((bias ? layer.b : layer.w).get() + packed, params + flat, sizeof(float) * columns);
    });
    if (transposed && layer.wt.get())
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

Plan::Turn::Turn(Plan& plan) : plan_(plan) {
  if (plan.owner_.load() == std::this_thread::get_id())
    throw std::runtime_error(
        "this plan is in use by the call that was interrupted: use another plan in signal handlers");
  plan.mutex_.lock();
  plan.owner_.store(std::this_thread::get_id());
}

Plan::Turn::~Turn() {
  plan_.owner_.store({});
  plan_.mutex_.unlock();
}

// Thread 0 asks; once it has been told, every thread hears of it.
bool Plan::interrupt_due(const Team& team) {
  if (team.id == 0 && interrupted_ && !cut_.load(std::memory_order_relaxed) && interrupted_())
    cut_.store(true, std::memory_order_relaxed);
  return cut_.load(std::memory_order_relaxed);
}

// f(begin, end) over this thread's share, a few tasks at a time, until an interrupt is due.
template <typename F>
void Plan::run_tasks(const Team& team, int tasks, F f) {
  constexpr int slice = 32;
  for (int begin = team.begin(tasks), end = team.end(tasks); begin < end && !interrupt_due(team); begin += slice)
    f(begin, std::min(begin + slice, end));
}

// Ends a phase that may be the last: false on every thread when an interrupt is due. Thread 0 names the phase to stop
// at, so that a thread still leaving this phase is not misled by a decision taken in the next.
bool Plan::proceed(Team& team) {
  int64_t phase = ++team.phase;
  if (team.id == 0 && interrupt_due(team)) {
    int64_t never = INT64_MAX;
    stop_phase_.compare_exchange_strong(never, phase, std::memory_order_relaxed);
  }
  team.barrier();
  return phase < stop_phase_.load(std::memory_order_relaxed);
}

// y_i = f(y_{i-1} W_i + b_i), the last layer affine
bool Plan::forward(Team& team, Chain& chain, const float* x, long x_ld, int rows, const Nonzeros* nonzeros) {
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
    g.nonzeros = i ? nullptr : nonzeros;
    run_tasks(team, kernels.affine_tasks(g), [&](int begin, int end) { kernels.affine(g, begin, end); });
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
  run_tasks(team, kernels.affine_tasks(g), [&](int begin, int end) { kernels.affine(g, begin, end); });
  return proceed(team);
}

bool Plan::backward(Team& team, Chain& chain, int rows) {
  for (size_t i = chain.layers.size() - 1; i > 0; --i)
    if (!input_gradient(team, chain.layers[i], chain.dy[i], rows, &chain.y[i - 1], chain.activation, chain.dy[i - 1]))
      return false;
  return true;
}

// With `update` each tile of dW is applied where it stands; without, stored in gw and gb.
void Plan::weight_gradients(Team& team, Chain& chain, const float* x, long x_ld, int rows, const Update* update,
                            const Nonzeros* nonzeros) {
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
    g.nonzeros = i ? nullptr : nonzeros;
    int tasks = kernels.weight_tasks(g);
    kernels.weight_gradient(g, team.begin(tasks), team.end(tasks));
  }
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

}  // namespace fastvae
