// The workspace, the packed form of the parameters, and the phases that every operation is made of.
#include "plan.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "errors.hpp"

namespace fastvae {
namespace {

// Calls f(bias, packed, flat, columns) for each row of W and for b, this thread's share of the panels: some panels at a
// time row by row, so that neither side jumps a page at every call.
template <typename F>
void for_packed_rows(const Team& team, const Layer& layer, int panel, F f) {
  constexpr int some = 16;
  for (int first = team.begin(layer.panels), end = team.end(layer.panels); first < end; first += some)
    for (int k = 0; k <= layer.fan_in; ++k)  // b follows the last row of W
      for (int p = first; p < std::min(first + some, end); ++p) {
        const bool bias = k == layer.fan_in;
        size_t packed = static_cast<size_t>(p) * (bias ? 1 : layer.fan_in) + (bias ? 0 : k);
        f(bias, packed * panel, layer.offset + static_cast<size_t>(k) * layer.fan_out + p * panel,
          std::min(panel, layer.fan_out - p * panel));
      }
}

}  // namespace

Floats::Floats(size_t count) {
  constexpr size_t line = 64;
  memory_.reset(std::calloc(std::max<size_t>(count, 1) * sizeof(float) + line, 1));
  if (!memory_) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  first_ = reinterpret_cast<float*>((address + line - 1) / line * line);
}

int PhaseClock::add(std::string name) {
  phases_.push_back({std::move(name), 0});
  return static_cast<int>(phases_.size()) - 1;
}

Plan::Plan(Spec s, int rows, int draws, bool bf16, int threads)
    : spec(std::move(s)),
      rows(rows),
      draws(draws),
      threads(threads),
      bf16(bf16),
      kernels(select_kernels()),
      pool_(threads) {
  if (bf16 && !kernels.to_pairs)
    throw Unavailable(std::string("precision 'bf16' needs the instruction set avx512_bf16, and this is ") +
                      kernels.level + ": use precision 'fp32'");
  auto dims = [](int first, const std::vector<int>& hidden, int last) {
    std::vector<int> d = {first};
    d.insert(d.end(), hidden.begin(), hidden.end());
    d.push_back(last);
    return d;
  };
  int all = rows * draws;
  encoder_.name = "encoder";
  decoder_.name = "decoder";
  gather_phase_ = clock_.add("gather");
  latent_forward_phase_ = clock_.add("latent_forward");
  likelihood_phase_ = clock_.add("likelihood");
  latent_backward_phase_ = clock_.add("latent_backward");
  wait_phase_ = clock_.add("wait");
  encoder_.activation = decoder_.activation = spec.activation;
  add_layers(encoder_, dims(spec.data_dim, spec.encoder_hidden, 2 * spec.latent_dim), rows, false, parameter_count_);
  add_layers(decoder_, dims(spec.latent_dim, spec.decoder_hidden, spec.heads() * spec.data_dim), all, true,
             parameter_count_);
  int both = bf16 ? float32 | paired : float32;
  x_ = matrix(rows, spec.data_dim, both);
  z_ = matrix(all, spec.latent_dim, both);
  dz_ = matrix(all, spec.latent_dim, float32);
  eps_ = Floats(static_cast<size_t>(all) * spec.latent_dim);
  kl_ = Floats(all);
  log_px_ = Floats(static_cast<size_t>(decoder_.layers.back().panels + threads) * all);
}

Matrix Plan::matrix(int rows, int columns, int forms) const {
  auto spread = [](long ld) { return ld % 256 ? ld : ld + 16; };  // rows 1 KB apart fall into few sets of the L1 cache
  const long wide = static_cast<long>(ceil_div(columns, kernels.panel)) * kernels.panel;
  Matrix m;
  if (forms & float32) {
    m.ld = spread(wide);
    m.memory = Floats(static_cast<size_t>(rows) * m.ld);
    m.p = m.memory.get();
  }
  if (forms & paired) {
    m.pairs.along_ld = spread(wide / 2);
    m.pairs.across_ld = spread(wide);
    m.along = Floats(static_cast<size_t>(rows) * m.pairs.along_ld);
    m.across = Floats(static_cast<size_t>(ceil_div(rows, 2)) * m.pairs.across_ld);
    m.pairs.along = m.along.get();
    m.pairs.across = m.across.get();
  }
  return m;
}

Plan::Share Plan::share(const Team& team, int rows) const {
  int pairs = ceil_div(rows, 2);
  return {2 * team.begin(pairs), std::min(2 * team.end(pairs), rows)};
}

void Plan::to_pairs(const Matrix& m, int columns, int rows, Share share) const {
  if (bf16) kernels.to_pairs(m.p, m.ld, rows, columns, m.pairs, share.begin / 2, ceil_div(share.end, 2));
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
    if (bf16) layer.w16 = Floats(columns * units(layer.fan_in));
    if (i || input_gradient) layer.wt = Floats(columns / (bf16 ? 2 : 1) * ceil_div(layer.fan_in, panel) * panel);
    offset = layer.bias_offset() + layer.fan_out;
    layer.forward_phase = clock_.add(chain.name + "_forward." + std::to_string(i));
    layer.backward_phase = clock_.add(chain.name + "_backward." + std::to_string(i));
    layer.weights_phase = clock_.add(chain.name + "_weights." + std::to_string(i));
    const bool last = i + 2 == dims.size();
    chain.y.push_back(matrix(rows, layer.fan_out, bf16 && !last ? paired : float32));
    chain.dy.push_back(matrix(rows, layer.fan_out, (bf16 ? paired : 0) | (bf16 && !last ? 0 : float32)));
    chain.layers.push_back(std::move(layer));
  }
}

void Plan::pack(Team& team, Chain& chain, const float* params, bool transposed) {
  for (Layer& layer : chain.layers) {
    for_packed_rows(team, layer, kernels.panel, [&](bool bias, size_t packed, size_t flat, int columns) {
      std::memcpy((bias ? layer.b : layer.w).get() + packed, params + flat, sizeof(float) * columns);
    });
    float* wt = transposed ? layer.wt.get() : nullptr;
    if (bf16 || wt)
      kernels.derive(layer.w.get(), layer.w16.get(), wt, layer.fan_in, layer.panels, team.begin(layer.panels),
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

// Ends a phase that may be the last, and takes its time: false on every thread when an interrupt is due. Thread 0 names
// the phase to stop at, so that a thread still leaving this phase is not misled by a decision taken in the next.
bool Plan::proceed(Team& team, int clock_phase) {
  int64_t phase = ++team.phase;
  if (team.id == 0 && interrupt_due(team)) {
    int64_t never = INT64_MAX;
    stop_phase_.compare_exchange_strong(never, phase, std::memory_order_relaxed);
  }
  team.barrier();
  if (team.id == 0) clock_.stop(clock_phase);
  return phase < stop_phase_.load(std::memory_order_relaxed);
}

// y_i = f(y_{i-1} W_i + b_i), the last layer affine; with a density its gradient in place of the last y
bool Plan::forward(Team& team, Chain& chain, Operand x, int rows, const Lists* lists, const Lists* columns,
                   const Density* density) {
  for (size_t i = 0; i < chain.layers.size(); ++i) {
    const Layer& layer = chain.layers[i];
    Affine g = {};
    Operand a = i ? along(chain.y[i - 1]) : x;
    g.bf16 = bf16;
    g.a = a.p;
    g.a_ld = a.ld;
    g.b = (bf16 ? layer.w16 : layer.w).get();
    g.b_rows = units(layer.fan_in);
    g.bias = layer.b.get();
    g.activation = i + 1 < chain.layers.size() ? chain.activation : Activation::none;
    g.c = chain.y[i].p;
    g.c_ld = chain.y[i].ld;
    g.pairs = chain.y[i].pairs;
    if (density && i + 1 == chain.layers.size()) {
      g.density = density;
      g.log_px = log_px_.get();
      g.c = bf16 && !density->weighed ? nullptr : density->dout;
      g.c_ld = chain.dy[i].ld;
      g.pairs = density->dout && !density->weighed ? chain.dy[i].pairs : Pairs{};
    }
    g.rows = rows;
    g.depth = units(layer.fan_in);
    g.panels = layer.panels;
    g.lists = i ? nullptr : lists;
    g.columns = i ? nullptr : columns;
    g.sums = scratch(team);
    run_tasks(team, kernels.affine_tasks(g), [&](int begin, int end) { kernels.affine(g, begin, end); });
    if (!proceed(team, layer.forward_phase)) return false;
  }
  return true;
}

// The decoder and its likelihood g: log p(x|z) in parts for `sum_log_px`, and its gradient in the decoder's last dy, in
// float32 alone where it is to be weighed.
bool Plan::decode(Team& team, Operand z, int rows, Density g, bool gradient) {
  const Matrix &out = decoder_.y.back(), &dout = decoder_.dy.back();
  g.dout = gradient ? dout.p : nullptr;
  g.dout_ld = dout.ld;
  const bool fused = spec.likelihood == Likelihood::bernoulli;  // the two heads of the Gaussian lie in different panels
  if (!forward(team, decoder_, z, rows, nullptr, nullptr, fused ? &g : nullptr)) return false;
  if (fused) return true;
  g.out = out.p;
  g.out_ld = out.ld;
  g.log_px = log_px_.get();
  const Share mine = share(team, rows);
  kernels.likelihood(g, mine.begin, mine.end);
  if (gradient && !g.weighed) to_pairs(dout, spec.heads() * spec.data_dim, rows, mine);
  return proceed(team, likelihood_phase_);
}

// The rows' log p(x|z), each the sum of its parts, in a place of this thread's own.
const float* Plan::sum_log_px(const Team& team, int rows, Share share) const {
  const int panels = decoder_.layers.back().panels, parts = spec.likelihood == Likelihood::bernoulli ? panels : 1;
  float* sum = log_px_.get() + static_cast<size_t>(panels + team.id) * rows;
  std::fill(sum + share.begin, sum + share.end, 0.0f);
  for (int p = 0; p < parts; ++p)
    for (int r = share.begin; r < share.end; ++r) sum[r] += log_px_.get()[static_cast<size_t>(p) * rows + r];
  return sum;
}

// dx = dy W^T, times f'(h) when h is given
bool Plan::input_gradient(Team& team, const Layer& layer, const Matrix& dy, int rows, const Matrix* h,
                          Activation activation, Matrix& dx) {
  Affine g = {};
  Operand a = along(dy), stored = h ? along(*h) : Operand{};
  g.bf16 = bf16;
  g.a = a.p;
  g.a_ld = a.ld;
  g.b = layer.wt.get();
  g.b_rows = units(layer.panels * kernels.panel);
  g.h = stored.p;
  g.h_ld = stored.ld;
  g.activation = activation;
  g.c = dx.p;
  g.c_ld = dx.ld;
  g.pairs = dx.pairs;
  g.rows = rows;
  g.depth = units(layer.fan_out);
  g.panels = ceil_div(layer.fan_in, kernels.panel);
  run_tasks(team, kernels.affine_tasks(g), [&](int begin, int end) { kernels.affine(g, begin, end); });
  return proceed(team, layer.backward_phase);
}

bool Plan::backward(Team& team, Chain& chain, int rows) {
  for (size_t i = chain.layers.size() - 1; i > 0; --i)
    if (!input_gradient(team, chain.layers[i], chain.dy[i], rows, &chain.y[i - 1], chain.activation, chain.dy[i - 1]))
      return false;
  return true;
}

// With `update` each tile of dW is applied where it stands; without, stored in gw and gb.
void Plan::weight_gradients(Team& team, Chain& chain, Operand x, int rows, const Update* update, const Lists* lists) {
  for (size_t i = 0; i < chain.layers.size(); ++i) {
    Layer& layer = chain.layers[i];
    WeightGradient g = {};
    Operand input = i ? across(chain.y[i - 1]) : x, dy = across(chain.dy[i]);
    g.bf16 = bf16;
    g.x = input.p;
    g.x_ld = input.ld;
    g.dy = dy.p;
    g.dy_ld = dy.ld;
    g.depth = units(rows);
    g.fan_in = layer.fan_in;
    g.panels = layer.panels;
    g.w = layer.w.get();
    g.b = layer.b.get();
    g.w16 = layer.w16.get();
    g.wt = layer.wt.get();
    for (int slot = 0; slot < 2; ++slot) {
      g.ws[slot] = layer.s[slot].get();
      g.bs[slot] = layer.bs[slot].get();
    }
    if (update)
      g.update = *update;
    else
      g.gw = layer.gw.get(), g.gb = layer.gb.get();
    g.lists = i ? nullptr : lists;
    int tasks = kernels.weight_tasks(g);
    kernels.weight_gradient(g, team.begin(tasks), team.end(tasks));
    if (team.id == 0) clock_.stop(layer.weights_phase);
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
