"""The reference backend: NumPy, one short function per operation. It is the law the other backends are tested against.

`fastvae.kernels.Plan` describes every argument; the docstrings here give the equations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae import rng
from fastvae.kernels import Array
from fastvae.kernels.checks import CheckedPlan, check_array, check_noise
from fastvae.network import Dense, Network
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import Buffers
from fastvae.training.composed import kl_weight_at
from fastvae.training.step import compose_step

__all__ = ["NAME", "PRECISIONS", "ReferencePlan", "normal", "philox", "plan"]

NAME = "reference"
_DTYPES = {"fp32": np.float32, "fp64": np.float64}
PRECISIONS = tuple(_DTYPES)


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


# Infinity and NaN come through as values: train_steps reports them.
_QUIET = np.errstate(all="ignore")


class ReferencePlan(CheckedPlan):
    """The operations on one network; it needs no workspace and no threads."""

    def __init__(self, network: Network, **sizes: Any) -> None:
        super().__init__(network, name=NAME, dtypes=_DTYPES, **sizes)
        self.activation, self.activation_slope = ACTIVATIONS[network.activation]

    @_QUIET
    def gather(self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array) -> None:
        """``x[m] = data[index[m]] * scale``, then ``[u < x]``."""
        self._check_gather(data=data, index=index, scale=scale, binarize=binarize, seed=seed, step=step, x=x)
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
        y: Array = x @ layers[-1].weight(params) + layers[-1].bias(params)
        return y

    def _backward(
        self,
        layers: tuple[Dense, ...],
        params: Array,
        x: Array,
        hidden: tuple[Array, ...],
        dout: Array,
        grad: Array | None,
    ) -> Array:
        """``dW += h^T dy``, ``db += sum dy``, ``dh = dy W^T``, ``da = dh f'(a)``; return d of the first layer's y."""
        inputs = (x, *hidden)
        for i in reversed(range(len(layers))):
            if grad is not None:
                layers[i].weight(grad)[:] += inputs[i].T @ dout
                layers[i].bias(grad)[:] += dout.sum(0)
            if i:
                dout = (dout @ layers[i].weight(params).T) * self.activation_slope(inputs[i])
        return dout

    @_QUIET
    def encoder_forward(self, *, params: Array, x: Array, hidden: tuple[Array, ...], mu: Array, logvar: Array) -> None:
        """``[mu | logvar]`` = encoder's last affine layer."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=True)
        self._check((rows, self.network.latent_dim), output=True, mu=mu, logvar=logvar)
        mu[:], logvar[:] = np.hsplit(self._forward(self.network.layout.encoder, params, x, hidden), 2)

    @_QUIET
    def latent_forward(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """``z = mu + exp(logvar / 2) eps``; ``kl = -1/2 sum_j (1 + logvar - mu^2 - exp(logvar))``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[1:2], output=True, kl=kl)
        z[:] = mu + np.exp(logvar / 2) * eps
        # expm1(v) - v is 1 + v - exp(v) without its cancellation near v = 0
        kl[:] = 0.5 * (mu * mu + (np.expm1(logvar) - logvar)).sum(1)

    @_QUIET
    def latent_forward_sampled(self, *, mu: Array, logvar: Array, eps: Array, z: Array, kl: Array) -> None:
        """``z = mu + exp(logvar / 2) eps``; ``kl_l = 1/2 sum_j (z_l^2 - eps_l^2 - logvar)``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, output=True, z=z)
        self._check(shape[:2], output=True, kl=kl)
        z[:] = mu + np.exp(logvar / 2) * eps
        kl[:] = 0.5 * (z * z - eps * eps - logvar).sum(2)

    @_QUIET
    def decoder_forward(self, *, params: Array, z: Array, hidden: tuple[Array, ...], out: Array) -> None:
        """``out`` = decoder's last affine layer."""
        rows = self._check_z(z)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.decoder_hidden, output=True)
        self._check((rows, self.network.decoder_dims[-1]), output=True, out=out)
        out[:] = self._forward(self.network.layout.decoder, params, z, hidden)

    @_QUIET
    def likelihood(self, *, x: Array, out: Array, scale: float, log_px: Array, dout: Array | None) -> None:
        """bernoulli: ``x a - max(a, 0) - log1p(exp(-|a|))``.

        gaussian: ``-1/2 (log 2 pi + logvar + (x - mean)^2 / exp(logvar))``.
        """
        batch = self._check_x(x)
        rows = self._check_out(out, multiple_of=batch)
        self._check((rows,), output=True, log_px=log_px)
        if dout is not None:
            self._check(out.shape, output=True, dout=dout)
        x = np.tile(x, (rows // batch, 1))
        if self.network.likelihood == "bernoulli":
            log_px[:] = (x * out - np.maximum(out, 0) - np.log1p(np.exp(-np.abs(out)))).sum(1)
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

    @_QUIET
    def likelihood_mean(self, *, out: Array, mean: Array) -> None:
        """``sigmoid(a)``, or ``a`` for the identity mean."""
        rows = self._check_out(out)
        self._check((rows, self.network.data_dim), output=True, mean=mean)
        mean[:] = self._mean(out[:, : self.network.data_dim])

    @_QUIET
    def likelihood_sample(self, *, out: Array, seed: int, step: int, x: Array) -> None:
        """bernoulli: ``[u < sigmoid(a)]``; gaussian: ``mean + exp(logvar / 2) n``."""
        rows = self._check_out(out)
        check_noise(seed=seed, step=step)
        shape = rows, self.network.data_dim
        self._check(shape, output=True, x=x)
        key: dict[str, Any] = {"seed": seed, "step": step, "stream": rng.Stream.DREAM, "shape": shape}
        mean = self._mean(out[:, : shape[1]])
        if self.network.likelihood == "bernoulli":
            x[:] = rng.uniform(**key) < mean
            return
        floor = self.dtype.type(self.network.logvar_floor)
        logvar = floor + softplus(out[:, shape[1] :] - floor)
        x[:] = mean + np.exp(logvar / 2) * rng.normal(**key, dtype=self.dtype)

    @_QUIET
    def decoder_backward(
        self, *, params: Array, z: Array, hidden: tuple[Array, ...], dout: Array, dz: Array | None, grad: Array | None
    ) -> None:
        """``dz = dy W_0^T`` after the layers above it."""
        rows = self._check_z(z)
        self._check_params(params)
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

    @_QUIET
    def latent_backward(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, kl_scale: float, dmu: Array, dlogvar: Array
    ) -> None:
        """``dmu = sum dz - s mu``; ``dlogvar = sum dz eps exp(logvar / 2) / 2 - s (exp(logvar) - 1) / 2``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        dmu[:] = dz.sum(0) - kl_scale * mu
        dlogvar[:] = 0.5 * np.exp(logvar / 2) * (dz * eps).sum(0) - 0.5 * kl_scale * np.expm1(logvar)

    @_QUIET
    def latent_backward_sampled(
        self, *, mu: Array, logvar: Array, eps: Array, dz: Array, weight: Array, dmu: Array, dlogvar: Array
    ) -> None:
        """``g = dz - w z``; ``dmu = sum g``; ``dlogvar = exp(logvar / 2) / 2 sum g eps + 1/2 sum w``."""
        shape = self._check_latent(mu, logvar, eps)
        self._check(shape, dz=dz)
        self._check(shape[:2], weight=weight)
        self._check(shape[1:], output=True, dmu=dmu, dlogvar=dlogvar)
        sd, w = np.exp(logvar / 2), weight[..., np.newaxis]
        g = dz - w * (mu + sd * eps)
        dmu[:] = g.sum(0)
        dlogvar[:] = 0.5 * (sd * (g * eps).sum(0) + w.sum(0))

    @_QUIET
    def encoder_backward(
        self, *, params: Array, x: Array, hidden: tuple[Array, ...], dmu: Array, dlogvar: Array, grad: Array
    ) -> None:
        """Gradient of the layers below ``[mu | logvar]``."""
        rows = self._check_x(x)
        self._check_params(params)
        self._check_hidden(hidden, rows, self.network.encoder_hidden, output=False)
        self._check((rows, self.network.latent_dim), dmu=dmu, dlogvar=dlogvar)
        self._check(params.shape, output=True, grad=grad)
        self._backward(self.network.layout.encoder, params, x, hidden, np.hstack([dmu, dlogvar]), grad)

    @_QUIET
    def log_joint(self, *, params: Array, x: Array, z: Array, log_pxz: Array, dz: Array | None) -> None:
        """``log p(x|z) - 1/2 sum_j (log 2 pi + z_j^2)``; gradient ``d log p(x|z)/dz - z``."""
        rows = self._check_z(z, multiple_of=self._check_x(x))
        self._check_params(params)
        self._check((rows,), output=True, log_pxz=log_pxz)
        if dz is not None:
            self._check(z.shape, output=True, dz=dz)
        hidden = tuple(np.empty((rows, width), self.dtype) for width in self.network.decoder_hidden)
        out = np.empty((rows, self.network.decoder_dims[-1]), self.dtype)
        dout = None if dz is None else np.empty_like(out)
        self.decoder_forward(params=params, z=z, hidden=hidden, out=out)
        self.likelihood(x=x, out=out, scale=1.0, log_px=log_pxz, dout=dout)
        log_pxz -= 0.5 * (np.log(2 * np.pi, dtype=self.dtype) + z * z).sum(1)
        if dz is not None and dout is not None:
            self.decoder_backward(params=params, z=z, hidden=hidden, dout=dout, dz=dz, grad=None)
            dz -= z

    @_QUIET
    def update(
        self, *, optimizer: Optimizer, params: Array, grad: Array, state: Array, step: int, decay: float
    ) -> None:
        """The rules of `fastvae.optimizer.Optimizer`."""
        self._check_params(params, output=True)
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
        estimator: str,
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
    ) -> None:
        """The composition itself, step after step."""
        self._check_train_steps(
            params=params,
            state=state,
            n_slots=optimizer.n_slots,
            data=data,
            order=order,
            scale=scale,
            binarize=binarize,
            seed=seed,
            step=step,
            estimator=estimator,
            kl_weight=kl_weight,
            kl_warmup=kl_warmup,
            decay=decay,
            stats=stats,
            done=done,
        )
        done[0] = 0
        buffers = Buffers.allocate(self.network, order.shape[1], self.draws, self.dtype)
        for i, index in enumerate(order):
            before = params.copy(), state.copy()
            try:
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
                    estimator=estimator,
                    kl_weight=kl_weight_at(step + i, kl_weight=kl_weight, kl_warmup=kl_warmup),
                    decay=decay,
                )
                if not np.isfinite(stats[i, 0] - stats[i, 1]):
                    return
                done[0] = i + 1
            except BaseException:  # an interrupt between two statements: the step is undone and not counted
                params[:], state[:] = before
                done[0] = i
                raise


def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> ReferencePlan:
    """Return a plan; NumPy's own BLAS threads do the work, so `n_threads` is only recorded."""
    return ReferencePlan(network, rows=rows, draws=draws, precision=precision, n_threads=n_threads)


def philox(*, counter: Array, key: Array, out: Array) -> None:
    """Philox4x32-10 blocks."""
    shape = (len(counter) if isinstance(counter, np.ndarray) and counter.ndim else 0, 4)
    check_array("counter", counter, shape, np.uint32)
    check_array("key", key, (2,), np.uint32)
    check_array("out", out, shape, np.uint32, output=True)
    out[:] = rng.philox(counter, key)


def normal(*, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    check_noise(seed=seed, step=step)
    check_array("out", out, np.shape(out), np.float32, output=True)
    out[:] = rng.normal(seed=seed, step=step, stream=stream, shape=out.shape)
