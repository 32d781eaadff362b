"""Geometry of ``optimizer.cu``, and the constants of a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda.launch import ADDRESS, LONG, STEP, UPDATE, Launch, struct
from fastvae.optimizer import Optimizer

__all__ = ["steps_table", "update", "update_at"]

_ADAGRAD, _ADAM, _SGD, _HOLD = range(4)
_RULES = {"adagrad": _ADAGRAD, "adam": _ADAM, "sgd": _SGD}
_FLAT_UPDATE = struct(update=UPDATE, w=ADDRESS, s0=ADDRESS, s1=ADDRESS, g=ADDRESS, n=LONG)


def update_at(o: Optimizer, step: Any, *, decay: float) -> Array:
    """Return the constants of a step, or of an array of steps, counted from 0."""
    count = np.asarray(step, np.float64) + 1
    u = np.zeros(count.shape, UPDATE)
    u["rule"] = _RULES[o.name]
    u["rate"], u["root_scale"] = o.learning_rate, 1.0
    if o.name == "adagrad":
        u["rule"] = np.where(count <= o.hold_steps, _HOLD, _ADAGRAD)
    elif o.name == "adam":
        u["rate"] = o.learning_rate / (1 - o.beta1**count)
        u["root_scale"] = 1 / np.sqrt(1 - o.beta2**count)
    u["momentum"], u["epsilon"], u["decay"] = o.momentum, o.epsilon, decay
    u["beta1"], u["gain1"], u["beta2"], u["gain2"] = o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2
    return u


def steps_table(
    o: Optimizer, *, first: int, count: int, kl_terms: int, kl_weight: float, kl_warmup: int, decay: float
) -> Array:
    """Return the constants of `count` steps from number `first` on; the KL divergence is a mean of `kl_terms` terms."""
    table = np.zeros(count, STEP)
    numbers = np.uint64(first) + np.arange(count, dtype=np.uint64)
    ramp = np.minimum(1.0, numbers / kl_warmup) if kl_warmup else 1.0
    table["number"], table["kl_scale"] = numbers, kl_weight * ramp / kl_terms
    table["update"] = update_at(o, numbers, decay=decay)
    return table


def update(constants: Array, *, w: int, s0: int, s1: int, g: int, n: int) -> Launch:
    """One step on `n` consecutive parameters; `s1` is 0 where the rule has one slot."""
    blocks = -(-n // 256)
    return Launch.of("optimizer", "update", _FLAT_UPDATE, blocks, 256, update=constants, w=w, s0=s0, s1=s1, g=g, n=n)
