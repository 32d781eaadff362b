"""The optimizers of ``fastvae.optimizer.Optimizer`` on n consecutive parameters: ascent with g - decay * w."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastvae.kernels.numba_cpu.compile import compiled, f32, floats
from fastvae.kernels.numba_cpu.vec import rsqrt
from fastvae.optimizer import Optimizer

__all__ = ["HOLD", "RULES", "Rule", "Update", "rule_of", "update", "update_at"]

ADAGRAD, ADAM, SGD, HOLD = range(4)  # HOLD gathers Adagrad's squares and leaves the parameters alone
RULES = {"adagrad": ADAGRAD, "adam": ADAM, "sgd": SGD}


class Rule(NamedTuple):
    """An optimizer's constants, and the weight prior's decay."""

    name: int
    learning_rate: float
    momentum: float
    beta1: float
    beta2: float
    epsilon: float
    hold_steps: int
    decay: float


class Update(NamedTuple):
    """The constants of one step, float32."""

    rule: int
    rate: Any
    momentum: Any
    beta1: Any
    gain1: Any
    beta2: Any
    gain2: Any
    root_scale: Any
    epsilon: Any
    decay: Any


def rule_of(o: Optimizer, decay: float) -> Rule:
    """Return an optimizer in its compiled form."""
    return Rule(RULES[o.name], o.learning_rate, o.momentum, o.beta1, o.beta2, o.epsilon, o.hold_steps, float(decay))


@compiled
def update_at(o: Rule, step: int) -> Update:
    """The constants of a step, counted from 0."""
    rule, rate, root_scale = o.name, o.learning_rate, 1.0
    if rule == ADAGRAD and step < o.hold_steps:
        rule = HOLD
    if rule == ADAM:
        rate /= 1 - math.pow(o.beta1, step + 1.0)
        root_scale = 1 / math.sqrt(1 - math.pow(o.beta2, step + 1.0))
    return Update(
        rule,
        f32(rate),
        f32(o.momentum),
        f32(o.beta1),
        f32(1 - o.beta1),
        f32(o.beta2),
        f32(1 - o.beta2),
        f32(root_scale),
        f32(o.epsilon),
        f32(o.decay),
    )


@compiled
def update(u: Update, w_at: int, s0_at: int, s1_at: int, g_at: int, n: int) -> None:
    """Apply a gradient to n parameters and their state."""
    w, s0, s1, gradient = floats(w_at, n), floats(s0_at, n), floats(s1_at, n), floats(g_at, n)
    if u.rule == ADAGRAD:
        for i in range(n):
            g = gradient[i] - u.decay * w[i]
            s0[i] += g * g
            w[i] += u.rate * g * rsqrt(s0[i] + u.epsilon)
    elif u.rule == HOLD:
        for i in range(n):
            g = gradient[i] - u.decay * w[i]
            s0[i] += g * g
    elif u.rule == ADAM:
        for i in range(n):
            g = gradient[i] - u.decay * w[i]
            s0[i] = u.beta1 * s0[i] + u.gain1 * g
            s1[i] = u.beta2 * s1[i] + u.gain2 * (g * g)
            w[i] += u.rate * s0[i] / (math.sqrt(s1[i]) * u.root_scale + u.epsilon)
    else:
        for i in range(n):
            g = gradient[i] - u.decay * w[i]
            s0[i] = u.momentum * s0[i] + g
            w[i] += u.rate * s0[i]
