// The contract's operations: canonical arrays in, the phases of plan.cpp on packed ones, canonical arrays out.
#include <algorithm>
#include <cstring>

#include "plan.hpp"

namespace fastvae {
namespace {

// rows x columns between two leading dimensions, this thread's share of the rows
void copy_rows(const Team& team, const float* from, long from_ld, float* to, long to_ld, int rows, int columns) {
  for (int r = team.begin(rows); r < team.end(rows); ++r)
    std::memcpy(to + r * to_ld, from + r * from_ld, sizeof(float) * columns);
}

void store_hidden(const Team& team, const Chain& chain, const std::vector<float*>& hidden, int rows) {
  for (size_t i = 0; i < hidden.size(); ++i) {
    int width = chain.layers[i].fan_out;
    copy_rows(team, chain.y[i].p, chain.y[i].ld, hidden[i], width, rows, width);
  }
}

void load_hidden(const Team& team, const Chain& chain, const std::vector<const float*>& hidden, int rows) {
  for (size_t i = 0; i < hidden.size(); ++i) {
    int width = chain.layers[i].fan_out;
    copy_rows(team, hidden[i], width, chain.y[i].p, chain.y[i].ld, rows, width);
  }
}

}  // namespace

void Plan::gather(Gather g, int rows) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.gather(g, team.begin(rows), team.end(rows)); });
}

void Plan::encoder_forward(const float* params, const float* x, int rows, const std::vector<float*>& hidden, float* mu,
                           float* logvar) {
  Turn turn(*this);
  pool_.run([&](Team& team) {
    pack(team, encoder_, params, false);
    team.barrier();
    forward(team, encoder_, x, spec.data_dim, rows, nullptr);
    store_hidden(team, encoder_, hidden, rows);
    const Matrix& heads = encoder_.y.back();
    copy_rows(team, heads.p, heads.ld, mu, spec.latent_dim, rows, spec.latent_dim);
    copy_rows(team, heads.p + spec.latent_dim, heads.ld, logvar, spec.latent_dim, rows, spec.latent_dim);
  });
}

void Plan::latent_forward(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_forward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::latent_backward(Latent g) {
  Turn turn(*this);
  pool_.run([&](Team& team) { kernels.latent_backward(g, team.begin(g.rows), team.end(g.rows)); });
}

void Plan::decoder_forward(const float* params, const float* z, int rows, const std::vector<float*>& hidden,
                           float* out) {
  Turn turn(*this);
  pool_.run([&](Team& team) {
    pack(team, decoder_, params, false);
    team.barrier();
    forward(team, decoder_, z, spec.latent_dim, rows, nullptr);
    store_hidden(team, decoder_, hidden, rows);
    int columns = spec.heads() * spec.data_dim;
    copy_rows(team, decoder_.y.back().p, decoder_.y.back().ld, out, columns, rows, columns);
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

void Plan::decoder_backward(const float* params, const float* z, int rows, const std::vector<const float*>& hidden,
                            const float* dout, float* dz, float* grad) {
  Turn turn(*this);
  if (grad) allocate_gradients(decoder_);
  pool_.run([&](Team& team) {
    pack(team, decoder_, params, true);
    load_hidden(team, decoder_, hidden, rows);
    int columns = spec.heads() * spec.data_dim;
    copy_rows(team, dout, columns, decoder_.dy.back().p, decoder_.dy.back().ld, rows, columns);
    team.barrier();
    backward(team, decoder_, rows);
    if (dz) {
      input_gradient(team, decoder_.layers[0], decoder_.dy[0], rows, nullptr, Activation::none, dz_);
      copy_rows(team, dz_.p, dz_.ld, dz, spec.latent_dim, rows, spec.latent_dim);
    }
    if (grad) {
      weight_gradients(team, decoder_, z, spec.latent_dim, rows, nullptr, nullptr);
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
    pack(team, encoder_, params, true);
    load_hidden(team, encoder_, hidden, rows);
    const Matrix& dheads = encoder_.dy.back();
    copy_rows(team, dmu, spec.latent_dim, dheads.p, dheads.ld, rows, spec.latent_dim);
    copy_rows(team, dlogvar, spec.latent_dim, dheads.p + spec.latent_dim, dheads.ld, rows, spec.latent_dim);
    team.barrier();
    backward(team, encoder_, rows);
    weight_gradients(team, encoder_, x, spec.data_dim, rows, nullptr, nullptr);
    team.barrier();
    add_gradients(team, encoder_, grad);
  });
}

void Plan::log_joint(const float* params, const float* x, int x_rows, const float* z, int rows, float* log_pxz,
                     float* dz) {
  Turn turn(*this);
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
    pack(team, decoder_, params, dz != nullptr);
    team.barrier();
    forward(team, decoder_, z, spec.latent_dim, rows, nullptr);
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
