// The rules of fastvae/optimizer.py on one parameter: ascent with g - decay * w. s1 is Adam's alone.
#pragma once
#include "common.cuh"

DEVICE float updated(const Update& u, float w, float g, float& s0, float& s1) {
  g -= u.decay * w;
  switch (u.rule) {
    case RULE_ADAGRAD: s0 += g * g; return w + u.rate * g * reciprocal_root(s0 + u.epsilon);
    case RULE_HOLD: s0 += g * g; return w;
    case RULE_ADAM:
      s0 = u.beta1 * s0 + u.gain1 * g;
      s1 = u.beta2 * s1 + u.gain2 * (g * g);
      return w + quotient(u.rate * s0, root(s1) * u.root_scale + u.epsilon);
    default: s0 = u.momentum * s0 + g; return w + u.rate * s0;
  }
}

constexpr int RULES = RULE_HOLD + 1;
template <int N>
DEVICE void update_all(const Update& u, float (&w)[N], const float (&g)[N], float (&s0)[N], float (&s1)[N]) {
  with_constant<RULES>(u.rule, [&](auto rule) {
    Update fixed = u;
    fixed.rule = rule;
    UNROLL
    for (int n = 0; n < N; ++n) w[n] = updated(fixed, w[n], g[n], s0[n], s1[n]);
  });
}
