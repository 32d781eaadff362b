// The optimizers of fastvae/optimizer.py on n consecutive parameters: ascent with g - decay * w.
#pragma once

template <Rule rule>
inline V updated(const Update& u, V w, V g, V& s0, V& s1) {
  if (u.decay != 0) g = g - u.decay * w;
  if constexpr (rule == Rule::adagrad || rule == Rule::hold) {
    s0 = s0 + g * g;
    return rule == Rule::hold ? w : w + twice_over_sqrt(0.5f * u.rate * g, s0 + u.epsilon);
  } else if constexpr (rule == Rule::adam) {
    s0 = u.beta1 * s0 + u.gain1 * g;
    s1 = u.beta2 * s1 + u.gain2 * (g * g);
    return w + u.rate * s0 / (sqrt(s1) * u.root_scale + u.epsilon);
  } else {
    s0 = u.momentum * s0 + g;
    return w + u.rate * s0;
  }
}

template <Rule rule>
void update_as(const Update& u, float* w, float* s0, float* s1, const float* g, long n) {
  constexpr bool second = rule == Rule::adam;
  long i = 0;
  for (; i + W <= n; i += W) {
    V a = load(s0 + i), b = second ? load(s1 + i) : V{};
    store(w + i, updated<rule>(u, load(w + i), load(g + i), a, b));
    store(s0 + i, a);
    if (second) store(s1 + i, b);
  }
  if (int rest = static_cast<int>(n - i)) {
    V a = load(s0 + i, rest), b = second ? load(s1 + i, rest) : V{};
    store(w + i, updated<rule>(u, load(w + i, rest), load(g + i, rest), a, b), rest);
    store(s0 + i, a, rest);
    if (second) store(s1 + i, b, rest);
  }
}

void update(const Update& u, float* w, float* s0, float* s1, const float* g, long n) {
  switch (u.rule) {
    case Rule::adagrad: return update_as<Rule::adagrad>(u, w, s0, s1, g, n);
    case Rule::hold: return update_as<Rule::hold>(u, w, s0, s1, g, n);
    case Rule::adam: return update_as<Rule::adam>(u, w, s0, s1, g, n);
    case Rule::sgd: return update_as<Rule::sgd>(u, w, s0, s1, g, n);
  }
}
