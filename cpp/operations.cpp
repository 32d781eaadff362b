// The contract's operations: canonical arrays in, the phases of plan.cpp on packed ones, canonical arrays out.
#include <algorithm>
#include <cstring>

#include "plan.hpp"

namespace fastvae {
namespace {

// rows x columns between two leading dimensions
void copy_rows(const float* from, long from_ld, float* to, long to_ld, int begin, int end, int columns) {
  for (int r = begin; r < end; ++r) std::memcpy(to + r * to_ld, from + r * from_ld, sizeof(float) * columns);
}

}  // namespace

// This thread's rows of a canonical array to the form that products read.
void Plan::load(const float* from, int columns, const Matrix& to, int rows, Share share) const {
  if (bf16)
    kernels.to_pairs(from, columns, rows, columns, to.pairs, share.begin / 2, units(share.end));
  else
    copy_rows(from, columns, to.p, to.ld, share.begin, share.end, columns);
}

void Plan::store_hidden(const Chain& chain, const std::vector<float*>& hidden, Share share) const {
  for (size_t i = 0; i < hidden.size(); ++i) {
    const Matrix& y = chain.y[i];
    int width = chain.layers[i].fan_out;
    if (!bf16) copy_rows(y.p, y.ld, hidden[i], width, share.begin, share.end, width);
    for (int r = share.begin; bf16 && r < share.end; ++r)
      kernels.from_pairs(y.pairs.along + r * y.pairs.along_ld, hidden[i] + static_cast<size_t>(r) * width, width);
  }
}

void Plan::load_hidden(const Chain& chain, const std::vector<const float*>& hidden, int rows, Share share) const {
  for (size_t i = 0; i < hidden.size(); ++i) load(hidden[i], chain.layers[i].fan_out, chain.y[i], rows, share);
}

void Plan::gather(Gather g, int rows) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.gather(g, team.begin(rows), team.end(rows)); });
}

void Plan::encoder_forward(const float* params, const float* x, int rows, const std::vector<float*>& hidden, float* mu,
                           float* logvar) {
  Turn turn(*this);
  allocate_nonzeros(false);
  const Operand operand = bf16 ? along(x_) : Operand{x, spec.data_dim};
  pool_.run([&](Team& team) {
    const Share mine = share(team, rows);
    const int latent_dim = spec.latent_dim;
    pack(team, encoder_, params, false);
    if (bf16) load(x, spec.data_dim, x_, rows, mine);
    list_rows(operand, mine);
    team.barrier();
    encode(team, operand, rows);
    store_hidden(encoder_, hidden, mine);
    const Matrix& heads = encoder_.y.back();
    copy_rows(heads.p, heads.ld, mu, latent_dim, mine.begin, mine.end, latent_dim);
    copy_rows(heads.p + latent_dim, heads.ld, logvar, latent_dim, mine.begin, mine.end, latent_dim);
  });
}

void Plan::latent_forward(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_forward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::latent_forward_sampled(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_forward_sampled(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::latent_backward(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_backward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::latent_backward_sampled(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_backward_sampled(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::decoder_forward(const float* params, const float* z, int rows, const std::vector<float*>& hidden,
                           float* out) {
  Turn turn(*this);
  pool_.run([&](Team& team) {
    const Share mine = share(team, rows);
    pack(team, decoder_, params, false);
    if (bf16) load(z, spec.latent_dim, z_, rows, mine);
    team.barrier();
    forward(team, decoder_, bf16 ? along(z_) : Operand{z, spec.latent_dim}, rows);
    store_hidden(decoder_, hidden, mine);
    const int columns = spec.heads() * spec.data_dim;
    copy_rows(decoder_.y.back().p, decoder_.y.back().ld, out, columns, mine.begin, mine.end, columns);
  });
}

void Plan::likelihood(const float* x, int x_rows, const float* out, int rows, float scale, float* log_px, float* dout) {
  Turn turn(*this);
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
  Turn turn(*this);
  Density g = density(1);
  g.out = out;
  g.out_ld = static_cast<long>(spec.heads()) * spec.data_dim;
  g.mean = mean;
  g.mean_ld = spec.data_dim;
  pool_.run([&](Team& team) { kernels.likelihood_mean(g, team.begin(rows), team.end(rows)); });
}

void Plan::likelihood_sample(const float* out, int rows, uint64_t seed, uint64_t step, float* x) {
  Turn turn(*this);
  Density g = density(1);
  g.out = out;
  g.out_ld = static_cast<long>(spec.heads()) * spec.data_dim;
  g.mean = x;
  g.mean_ld = spec.data_dim;
  g.seed = seed;
  g.step = step;
  pool_.run([&](Team& team) { kernels.likelihood_sample(g, team.begin(rows), team.end(rows)); });
}

void Plan::decoder_backward(const float* params, const float* z, int rows, const std::vector<const float*>& hidden,
                            const float* dout, float* dz, float* grad) {
  Turn turn(*this);
  if (grad) allocate_gradients(decoder_);
  pool_.run([&](Team& team) {
    const Share mine = share(team, rows);
    pack(team, decoder_, params, true);
    load_hidden(decoder_, hidden, rows, mine);
    load(dout, spec.heads() * spec.data_dim, decoder_.dy.back(), rows, mine);
    if (bf16) load(z, spec.latent_dim, z_, rows, mine);
    team.barrier();
    backward(team, decoder_, rows);
    if (dz) {
      input_gradient(team, decoder_.layers[0], decoder_.dy[0], rows, nullptr, Activation::none, dz_);
      copy_rows(dz_.p, dz_.ld, dz, spec.latent_dim, mine.begin, mine.end, spec.latent_dim);
    }
    if (grad) {
      weight_gradients(team, decoder_, bf16 ? across(z_) : Operand{z, spec.latent_dim}, rows, nullptr, nullptr);
      team.barrier();
      add_gradients(team, decoder_, grad);
    }
  });
}

void Plan::encoder_backward(const float* params, const float* x, int rows, const std::vector<const float*>& hidden,
                            const float* dmu, const float* dlogvar, float* grad) {
  Turn turn(*this);
  allocate_gradients(encoder_);
  pool_.run([&](Team& team) {
    const Share mine = share(team, rows);
    const int latent_dim = spec.latent_dim;
    pack(team, encoder_, params, true);
    load_hidden(encoder_, hidden, rows, mine);
    const Matrix& dheads = encoder_.dy.back();
    copy_rows(dmu, latent_dim, dheads.p, dheads.ld, mine.begin, mine.end, latent_dim);
    copy_rows(dlogvar, latent_dim, dheads.p + latent_dim, dheads.ld, mine.begin, mine.end, latent_dim);
    to_pairs(dheads, 2 * latent_dim, rows, mine);
    if (bf16) load(x, spec.data_dim, x_, rows, mine);
    team.barrier();
    backward(team, encoder_, rows);
    weight_gradients(team, encoder_, bf16 ? across(x_) : Operand{x, spec.data_dim}, rows, nullptr, nullptr);
    team.barrier();
    add_gradients(team, encoder_, grad);
  });
}

void Plan::log_joint(const float* params, const float* x, int x_rows, const float* z, int rows, float* log_pxz,
                     float* dz) {
  Turn turn(*this);
  Density g = density(x_rows);
  g.x = x;
  g.x_ld = spec.data_dim;
  g.scale = 1;
  pool_.run([&](Team& team) {
    const Share mine = share(team, rows);
    pack(team, decoder_, params, dz != nullptr);
    if (bf16) load(z, spec.latent_dim, z_, rows, mine);
    team.barrier();
    decode(team, bf16 ? along(z_) : Operand{z, spec.latent_dim}, rows, g, dz != nullptr);
    if (dz) {
      backward(team, decoder_, rows);
      input_gradient(team, decoder_.layers[0], decoder_.dy[0], rows, nullptr, Activation::none, dz_);
    }
    const float* log_px = sum_log_px(team, rows, mine);
    constexpr float log_two_pi = 1.83787707f;
    for (int r = mine.begin; r < mine.end; ++r) {
      const float* zr = z + static_cast<size_t>(r) * spec.latent_dim;
      float twice_negative = 0;
      for (int j = 0; j < spec.latent_dim; ++j) {
        twice_negative += log_two_pi + zr[j] * zr[j];
        if (dz) dz[static_cast<size_t>(r) * spec.latent_dim + j] = dz_.p[r * dz_.ld + j] - zr[j];
      }
      log_pxz[r] = log_px[r] - 0.5f * twice_negative;
    }
  });
}

void Plan::update(const Update& u, float* params, const float* grad, float* state) {
  Turn turn(*this);
  constexpr size_t block = 4096;  // shares cut at whole vectors
  int blocks = static_cast<int>((parameter_count_ + block - 1) / block);
  pool_.run([&](Team& team) {
    size_t begin = team.begin(blocks) * block, end = std::min(team.end(blocks) * block, parameter_count_);
    if (begin >= end) return;
    float* second = u.rule == Rule::adam ? state + parameter_count_ + begin : nullptr;
    kernels.update(u, params + begin, state + begin, second, grad + begin, static_cast<long>(end - begin));
  });
}

}  // namespace fastvae
