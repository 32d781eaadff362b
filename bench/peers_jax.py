"""A case in JAX, written as its experts would: rows resident, all steps of a call in one compiled ``lax.scan``.

JAX is imported on top: only a worker that has asked for it imports this module. XLA takes as many threads as the
process may use processors. Sparse rows are held dense as bytes: for wide-sparse a first layer that gathers rows of W by
the nonzeros took as long (120 to 142 ms against 129).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.kernels import Array
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

__all__ = ["make"]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid}
_PASS_ROWS = 1000


def make(case: Case, data: Dataset, *, n_threads: int, bf16: bool = False, unroll: int = 1) -> _Training | _Inference:
    """Return the runner of a case, float32 or with bfloat16 operands of every matrix product.

    `unroll` steps are one turn of the scan.
    """
    stored: Any = data.rows
    rows = jnp.asarray(stored.toarray() if data.is_sparse else stored)
    matmul = _bf16_matmul if bf16 else jnp.matmul
    if case.kind == "train":
        return _Training(case, rows, data.scale, matmul, unroll)
    return _Inference(case, rows, data.scale, matmul)


def _narrow(x: Any, y: Any) -> Any:
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


@jax.custom_vjp  # type: ignore[untyped-decorator]
def _bf16_matmul(x: Any, y: Any) -> Any:
    """Multiply bfloat16 operands into float32 sums, and so in backprop, where JAX alone would mix the two types."""
    return _narrow(x, y)


def _bf16_matmul_forward(x: Any, y: Any) -> Any:
    return _narrow(x, y), (x, y)


def _bf16_matmul_backward(saved: Any, g: Any) -> Any:
    x, y = saved
    return _narrow(g, y.T), _narrow(x.T, g)


_bf16_matmul.defvjp(_bf16_matmul_forward, _bf16_matmul_backward)


class _Model:
    """Encoder, decoder and bound as functions of the parameters."""

    def __init__(self, network: Network, matmul: Callable[[Any, Any], Any]) -> None:
        self.network, self.matmul = network, matmul

    def start(self) -> Any:
        flat, layout = initialise(self.network, seed=0), self.network.layout
        return [
            [(jnp.asarray(layer.weight(flat)), jnp.asarray(layer.bias(flat))) for layer in side]
            for side in (layout.encoder, layout.decoder)
        ]

    def _chain(self, layers: Any, x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = _ACTIVATIONS[self.network.activation](self.matmul(x, weight) + bias)
        return self.matmul(x, layers[-1][0]) + layers[-1][1]

    def encode(self, params: Any, x: Any) -> Any:
        return jnp.split(self._chain(params[0], x), 2, axis=1)

    def bound(self, params: Any, x: Any, key: Any) -> Any:
        """Return the bound of every row, shape (M,)."""
        mu, logvar = self.encode(params, x)
        z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        out = self._chain(params[1], z)
        kl = -0.5 * (1 + logvar - mu**2 - jnp.exp(logvar))
        return self._log_px(x, out).sum(1) - kl.sum(1)

    def _log_px(self, x: Any, out: Any) -> Any:
        if self.network.likelihood == "bernoulli":
            return x * out - jax.nn.softplus(out)
        mean, raw = jnp.split(out, 2, axis=1)
        if self.network.mean == "sigmoid":
            mean = jax.nn.sigmoid(mean)
        floor = self.network.logvar_floor
        logvar = floor + jax.nn.softplus(raw - floor)
        return -0.5 * (np.log(2 * np.pi) + logvar + (x - mean) ** 2 * jnp.exp(-logvar))


def _zero_state(optimizer: Optimizer, params: Any) -> Any:
    return [jax.tree.map(jnp.zeros_like, params) for _ in range(optimizer.n_slots)]


def _update(o: Optimizer, params: Any, state: Any, grads: Any, count: Any) -> Any:
    """Descend along `grads` by the rules of `Optimizer`."""
    if o.name == "adagrad":
        squares = jax.tree.map(lambda s, g: s + g * g, state[0], grads)
        step = jax.tree.map(lambda g, s: g * jax.lax.rsqrt(s + o.epsilon), grads, squares)
        state = [squares]
    elif o.name == "adam":
        first = jax.tree.map(lambda s, g: o.beta1 * s + (1 - o.beta1) * g, state[0], grads)
        second = jax.tree.map(lambda s, g: o.beta2 * s + (1 - o.beta2) * g * g, state[1], grads)
        c1, c2 = 1 / (1 - o.beta1**count), 1 / (1 - o.beta2**count)
        step = jax.tree.map(lambda s1, s2: c1 * s1 / (jnp.sqrt(c2 * s2) + o.epsilon), first, second)
        state = [first, second]
    else:
        step = jax.tree.map(lambda s, g: o.momentum * s + g, state[0], grads)
        state = [step]
    return jax.tree.map(lambda p, d: p - o.learning_rate * d, params, step), state


class _Training:
    """All steps of a call in one scan whose carry is donated."""

    def __init__(self, case: Case, rows: Any, scale: float, matmul: Callable[[Any, Any], Any], unroll: int) -> None:
        self.case, self.rows = case, rows
        self.model = model = _Model(case.network, matmul)

        def loss(params: Any, x: Any, key: Any) -> Any:
            return -model.bound(params, x, key).mean()

        # The rows are an argument: as a constant, XLA would fold them into the program.
        def scan(carry: Any, rows: Any, order: Any) -> Any:
            def step(carry: Any, index: Any) -> Any:
                params, state, count, key = carry
                key, draw = jax.random.split(key)
                x = rows[index].astype(jnp.float32) * scale
                value, grads = jax.value_and_grad(loss)(params, x, draw)
                params, state = _update(case.optimizer, params, state, grads, count)
                return (params, state, count + 1, key), value

            return jax.lax.scan(step, carry, order, unroll=unroll)

        self.scan = jax.jit(scan, donate_argnums=0)
        self.reset()

    def reset(self) -> None:
        params = self.model.start()
        self.carry = (params, _zero_state(self.case.optimizer, params), jnp.float32(1), jax.random.key(0))

    def run(self, order: Any) -> None:
        self.carry, self.losses = self.scan(self.carry, self.rows, order.astype(np.int32))
        jax.block_until_ready(self.losses)

    def params(self) -> Array:
        flat = np.empty(self.case.network.layout.size, np.float32)
        sides = [layer for side in self.carry[0] for layer in side]
        for layer, (weight, bias) in zip(self.case.network.layout.layers, sides, strict=True):
            layer.weight(flat)[:] = weight
            layer.bias(flat)[:] = bias
        return flat


class _Inference:
    """A pass over all rows in one call; rows that fill no whole batch go by themselves."""

    def __init__(self, case: Case, rows: Any, scale: float, matmul: Callable[[Any, Any], Any]) -> None:
        model = _Model(case.network, matmul)
        self.params, self.rows, self.key = model.start(), rows, jax.random.key(0)

        def batch(params: Any, batch_rows: Any, key: Any) -> Any:
            x = batch_rows.astype(jnp.float32) * scale
            return model.encode(params, x) if case.kind == "encode" else model.bound(params, x, key)

        def every(params: Any, rows: Any, key: Any) -> Any:
            whole = len(rows) // _PASS_ROWS * _PASS_ROWS
            keys = jax.random.split(key, whole // _PASS_ROWS + 1)
            batches = rows[:whole].reshape(-1, _PASS_ROWS, rows.shape[1])
            results = jax.lax.map(lambda pair: batch(params, *pair), (batches, keys[:-1]))
            return results, batch(params, rows[whole:], keys[-1]) if whole < len(rows) else None

        self.every = jax.jit(every)

    def run(self, order: Array) -> None:
        for _ in order:
            self.key, key = jax.random.split(self.key)
            jax.block_until_ready(self.every(self.params, self.rows, key))
