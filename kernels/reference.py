"""The reference backend: NumPy, one short function per operation. It is the law the other backends are tested against.

`fastvae.kernels.Plan` describes every argument; the docstrings here give the equations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae import rng
from fastvae.errors import BackendError
from fastvae.kernels import BINARIZE, Array
from fastvae.network import Dense, Network
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import Buffers, compose_step, kl_weight_at

__all__ = ["NAME", "PRECISIONS", "ReferencePlan", "normal", "philox", "plan"]

NAME = "reference"
PRECISIONS = ("fp32", "fp64")


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), from exp(-|a|) so that nothing overflows."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


def softplus(a: Array) -> Array:
    """log(1 + exp(a))."""
    return np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a)))


# name -> (function of the affine part a, derivative from the stored h)
ACTIVATIONS: dict[str, Any] = {
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
    "softplus": (softplus, lambda h: -np.expm1(-h)),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
}


class ReferencePlan:
    """The operations on one network; it needs no workspace and no threads."""

    def __init__(self, network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> None:
        self.network = network
        self.rows, self.draws, self.precision, self.n_threads = rows, draws, precision, n_threads
        self.dtype = np.dtype(np.float64 if precision == "fp64" else np.float32)
        self.activation, self.activation_slope = ACTIVATIONS[network.activation]

    def _check(self, shape: tuple[int, ...], dtype: Any = None, output: bool = False, **array: Array | None) -> None:
        ((name, value),) = array.items()
        dtype = np.dtype(dtype or self.dtype)
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{name} must be an ndarray of {dtype}, got {found}")
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
        if not value.flags.c_contiguous or (output and not value.flags.writeable):
            raise ValueError(f"{name} must be C-contiguous{' and writeable' if output else ''}")

    def _check_rows(self, name: str, value: Array, limit: int, multiple_of: int = 1) -> int:
        rows = len(value) if isinstance(value, np.ndarray) and value.ndim else 0
        if not 1 <= rows <= limit or rows % multiple_of:
            shape = getattr(value, "shape", None)
            raise ValueError(f"{name} must have 1 to {limit} rows, a multiple of {multiple_of}; got shape {shape}")
        return rows

    def _check_hidden(self, hidden: tuple[Array, ...], rows: int, widths: tuple[int, ...], output: bool) -> None:
        if len(hidden) != len(widths):
            raise ValueError(f"hidden must hold {len(widths)} arrays, got {len(hidden)}")
        for i, (array, width) in enumerate(zip(hidden, widths, strict=True)):
            self._check((rows, width), output=output, **{f"hidden[{i}]": array})

    def _check_data(self, data: Any, scale: float, binarize: str) -> None:
        values = data.data if hasattr(data, "indptr") else data
        if data.ndim != 2 or data.shape[1] != self.network.data_dim:
            raise ValueError(f"data must have shape (N, {self.network.data_dim}), got {data.shape}")
        if values.dtype not in (np.uint8, np.float32, np.float64):
            raise TypeError(f"data must be uint8, float32 or float64, got {values.dtype}")
        if binarize not in BINARIZE:
            raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {binarize!r}")
        if not 0 < scale < np.inf:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")

    def gather(self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array) -> None:
        """``x[m] = data[index[m]] * scale``, then ``[u < x]``."""
        rows = self._check_rows("index", index, self.rows)
        self._check((rows,), np.int64, index=index)
        self._check((rows, self.network.data_dim), output=True, x=x)
        self._check_data(data, scale, binarize)
        if index.min() < 0 or index.max() >= data.shape[0]:
            raise ValueError(f"index must lie in [0, {data.shape[0]}), got {index.min()} to {index.max()}")
        picked = data[index]
        x[:] = picked.toarray() if hasattr(picked, "toarray") else picked
        x *= self.dtype.type(scale)
        if binarize == "dynamic":
            x[:] = rng.uniform(seed=seed, step=step, stream=rng.Stream.BINARIZE, shape=x.shape) < x
        elif binarize != "none":
            for m, row in enumerate(index if binarize == "fixed" else np.zeros_like(index)):
                u = rng.uniform(seed=seed, step=int(row), stream=rng.Stream.BINARIZE_FIXED, shape=x[m].shape)
                x[m] = u < x[m]

    def _forward(self, layers: tuple[Dense, ...], params: Array, x: Array, hidden: tuple[Array, ...]) -> Array:
        """``h_i = f(h_{i-1} W_i + b_i)``; the last layer stays affine."""
        for layer, h in zip(layers, hidden, strict=False):
            h[:] = self.activation(x @ layer.weight(params) + layer.bias(params))
            x = h
        return x @ layers[-1].weight(params) + layers[-1].bias(params)

    def _backward(
        self,
        layers: tuple[Dense, ...],
        params: Array,
        x: Array,
        hidden: tuple[Array, ...],
        dout: Array,
        grad: Array | None,
    ) -> Array:
        """``dW += h^T dy``, ``db += sum_rows dy``, ``dh = dy W^T``, ``da = dh f'(a)``. Returns d of the first layer's y."""
        inputs = (x, *hidden)
        for i in reversed(range(len(layers))):
            if grad is not None:
                layers[i].weight(grad)[:] += inputs[i].T @ dout
                layers[i].bias(grad)[:] += dout.sum(0)
            if i:
                dout = (dout @ layers[i].weight(params).T) * self.activation_slope(inputs[i])
        return dout

    def encoder_forward(self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array) -> None:
        """``[mu | logvar]`` = encoder's last affine layer."""
        rows = self._check_rows("x", x, self.rows)
        self._check((rows, self.network.data_dim), x=x)
        self._check((self.network.layout.size,), params=params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=True)
        self._check((rows, self.network.latent_dim), output=True, mu=mu)
        self._check((rows, self.network.latent_dim), output=True, logvar=logvar)
        mu[:], logvar[:] = np.hsplit(self._forward(self.network.layout.encoder, params, x, hidden), 2)

    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """``z = mu + exp(logvar / 2) eps``; ``kl = -1/2 sum_j (1 + logvar - mu^2 - exp(logvar))``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[1:2], output=True, kl=kl)
        z[:] = mu + np.exp(logvar / 2) * eps
        # expm1(v) - v is 1 + v - exp(v) without its cancellation near v = 0
        kl[:] = 0.5 * (mu * mu + (np.expm1(logvar) - logvar)).sum(1)

    def _check_latent(self, mu: Array, logvar: Array, eps: Array) -> tuple[int, int, int]:
        rows = self._check_rows("mu", mu, self.rows)
        draws = self._check_rows("eps", eps, self.draws)
        shape = (draws, rows, self.network.latent_dim)
        self._check(shape[1:], mu=mu)
        self._check(shape[1:], logvar=logvar)
        self._check(shape, eps=eps)
        return shape

    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None:
        """``out`` = decoder's last affine layer."""
        rows = self._check_rows("z", z, self.rows * self.draws)
        self._check((rows, self.network.latent_dim), z=z)
        self._check((self.network.layout.size,), params=params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=True)
        self._check((rows, self.network.decoder_dims[-1]), output=True, out=out)
        out[:] = self._forward(self.network.layout.decoder, params, z, hidden)

    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None:
        """bernoulli: ``x a - softplus(a)``; gaussian: ``-1/2 (log 2 pi + logvar + (x - mean)^2 / exp(logvar))``."""
        batch = self._check_rows("x", x, self.rows)
        rows = self._check_rows("out", out, self.rows * self.draws, multiple_of=batch)
        self._check((batch, self.network.data_dim), x=x)
        self._check((rows, self.network.decoder_dims[-1]), out=out)
        self._check((rows,), output=True, log_px=log_px)
        if dout is not None:
            self._check(out.shape, output=True, dout=dout)
        x = np.tile(x, (rows // batch, 1))
        if self.network.likelihood == "bernoulli":
            log_px[:] = (x * out - softplus(out)).sum(1)
            if dout is not None:
                dout[:] = scale * (x - sigmoid(out))
            return
        a, s = np.hsplit(out, 2)
        floor = self.dtype.type(self.network.logvar_floor)
        mean, logvar = self._mean(a), floor + softplus(s - floor)
        error, precision = x - mean, np.exp(-logvar)
        log_px[:] = -0.5 * (np.log(2 * np.pi, dtype=self.dtype) + logvar + error * error * precision).sum(1)
        if dout is not None:
            slope = mean * (1 - mean) if self.network.mean == "sigmoid" else 1
            dout[:, : a.shape[1]] = scale * error * precision * slope
            dout[:, a.shape[1] :] = scale * 0.5 * (error * error * precision - 1) * sigmoid(s - floor)

    def _mean(self, a: Array) -> Array:
        return sigmoid(a) if self.network.likelihood == "bernoulli" or self.network.mean == "sigmoid" else a

    def likelihood_mean(self, *, out: Array, mean: Array) -> None:
        """``sigmoid(a)``, or ``a`` for the identity mean."""
        rows = self._check_rows("out", out, self.rows * self.draws)
        self._check((rows, self.network.decoder_dims[-1]), out=out)
        self._check((rows, self.network.data_dim), output=True, mean=mean)
        mean[:] = self._mean(out[:, : self.network.data_dim])

    def decoder_backward(
        self, *, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array, dz: Array | None, grad: Array | None
    ) -> None:
        """``dz = dy W_0^T`` after the layers above it."""
        rows = self._check_rows("z", z, self.rows * self.draws)
        self._check((rows, self.network.latent_dim), z=z)
        self._check((self.network.layout.size,), params=params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=False)
        self._check((rows, self.network.decoder_dims[-1]), dout=dout)
        if dz is not None:
            self._check(z.shape, output=True, dz=dz)
        if grad is not None:
            self._check(params.shape, output=True, grad=grad)
        layers = self.network.layout.decoder
        dy = self._backward(layers, params, z, hidden, dout, grad)
        if dz is not None:
            dz[:] = dy @ layers[0].weight(params).T

    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None:
        """``dmu = sum dz - s mu``; ``dlogvar = sum dz eps exp(logvar / 2) / 2 - s (exp(logvar) - 1) / 2``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[1:], output=True, dmu=dmu)
        self._check(shape[1:], output=True, dlogvar=dlogvar)
        dmu[:] = dz.sum(0) - kl_scale * mu
        dlogvar[:] = 0.5 * np.exp(logvar / 2) * (dz * eps).sum(0) - 0.5 * kl_scale * np.expm1(logvar)

    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None:
        """Gradient of the layers below ``[mu | logvar]``."""
        rows = self._check_rows("x", x, self.rows)
        self._check((rows, self.network.data_dim), x=x)
        self._check((self.network.layout.size,), params=params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=False)
        self._check((rows, self.network.latent_dim), dmu=dmu)
        self._check((rows, self.network.latent_dim), dlogvar=dlogvar)
        self._check(params.shape, output=True, grad=grad)
        self._backward(self.network.layout.encoder, params, x, hidden, np.hstack([dmu, dlogvar]), grad)

    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None:
        """``log p(x|z) - 1/2 sum_j (log 2 pi + z_j^2)``; gradient ``d log p(x|z)/dz - z``."""
        rows = self._check_rows("z", z, self.rows * self.draws)
        self._check((rows,), output=True, log_pxz=log_pxz)
        hidden = tuple(np.empty((rows, width), self.dtype) for width in self.network.decoder_hidden)
        out = np.empty((rows, self.network.decoder_dims[-1]), self.dtype)
        dout = None if dz is None else np.empty_like(out)
        self.decoder_forward(params=params, z=z, hidden=hidden, out=out)
        self.likelihood(x=x, out=out, scale=1.0, log_px=log_pxz, dout=dout)
        log_pxz -= 0.5 * (np.log(2 * np.pi, dtype=self.dtype) + z * z).sum(1)
        if dz is not None and dout is not None:
            self.decoder_backward(params=params, z=z, hidden=hidden, dout=dout, dz=dz, grad=None)
            dz -= z

    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None:
        """The rules of `fastvae.optimizer.Optimizer`."""
        self._check((self.network.layout.size,), output=True, params=params)
        self._check(params.shape, grad=grad)
        self._check((optimizer.n_slots, *params.shape), output=True, state=state)
        o, g = optimizer, grad - decay * params
        if o.name == "adagrad":
            state[0] += g * g
            if step >= o.hold_steps:
                params += o.learning_rate * g / np.sqrt(state[0] + o.epsilon)
        elif o.name == "adam":
            state[0] = o.beta1 * state[0] + (1 - o.beta1) * g
            state[1] = o.beta2 * state[1] + (1 - o.beta2) * g * g
            unbiased = state[0] / (1 - o.beta1 ** (step + 1)), state[1] / (1 - o.beta2 ** (step + 1))
            params += o.learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + o.epsilon)
        else:
            state[0] = o.momentum * state[0] + g
            params += o.learning_rate * state[0]

    def train_steps(
        self,
        *,
        params: Array,
        state: Array,
        optimizer: Optimizer,
        data: Any,
        order: Array,
        scale: float,
        binarize: str,
        seed: int,
        step: int,
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
    ) -> None:
        """The composition itself, step after step."""
        self._check((1,), np.int64, output=True, done=done)
        done[0] = 0
        if order.ndim != 2:
            raise ValueError(f"order must have shape (T, M), got {order.shape}")
        self._check(order.shape, np.int64, order=order)
        self._check((len(order), 2), np.float64, output=True, stats=stats)
        self._check((self.network.layout.size,), output=True, params=params)
        self._check((optimizer.n_slots, self.network.layout.size), output=True, state=state)
        self._check_data(data, scale, binarize)
        if order.size and (order.min() < 0 or order.max() >= data.shape[0]):
            raise ValueError(f"order must lie in [0, {data.shape[0]}), got {order.min()} to {order.max()}")
        buffers = Buffers.allocate(self.network, order.shape[1], self.draws, self.dtype)
        for i, index in enumerate(order):
            stats[i] = compose_step(
                self,
                buffers,
                params=params,
                state=state,
                optimizer=optimizer,
                data=data,
                index=index,
                scale=scale,
                binarize=binarize,
                seed=seed,
                step=step + i,
                kl_weight=kl_weight_at(step + i, kl_weight=kl_weight, kl_warmup=kl_warmup),
                decay=decay,
            )
            if not np.isfinite(stats[i, 0] - stats[i, 1]):
                return
            done[0] = i + 1


def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> ReferencePlan:
    """Return a plan; NumPy's own BLAS threads do the work, so `n_threads` is only recorded."""
    if precision not in PRECISIONS:
        raise BackendError(f"backend 'reference' has precisions {', '.join(PRECISIONS)}, not {precision!r}")
    for name, value in (("rows", rows), ("draws", draws), ("n_threads", n_threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return ReferencePlan(network, rows=rows, draws=draws, precision=precision, n_threads=n_threads)


def philox(*, counter: Array, key: Array, out: Array) -> None:
    """Philox4x32-10 blocks."""
    out[:] = rng.philox(counter, key)


def normal(*, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    out[:] = rng.normal(seed=seed, step=step, stream=stream, shape=out.shape, dtype=out.dtype)
