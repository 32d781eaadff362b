"""A model without hidden layers, of which everything is known in closed form.

``p(x|z) = N(z W + b, s^2 I)`` with ``p(z) = N(0, I)`` gives ``p(x) = N(b, W^T W + s^2 I)`` and
``p(z|x) = N((x - b) W^T S / s^2, S)`` with ``S = (I + W W^T / s^2)^-1``. The rows of W are orthogonal, so that S is
diagonal and an affine encoder can be the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvae.kernels import Array
from fastvae.network import Network

VARIANCE = 0.3


@dataclass(frozen=True)
class LinearGaussian:
    network: Network
    params: Array
    weight: Array
    bias: Array
    posterior_covariance: Array

    def posterior_mean(self, x: Array) -> Array:
        return np.asarray((x - self.bias) @ self.weight.T @ self.posterior_covariance / VARIANCE)

    def log_px(self, x: Array) -> Array:
        covariance = self.weight.T @ self.weight + VARIANCE * np.eye(len(self.bias))
        error = x - self.bias
        squares = (error @ np.linalg.inv(covariance) * error).sum(1)
        return np.asarray(-0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1]))

    def rows(self, n_rows: int, *, seed: int = 0) -> Array:
        draw = np.random.default_rng(seed)
        z = draw.normal(size=(n_rows, len(self.weight)))
        x = z @ self.weight + self.bias + VARIANCE**0.5 * draw.normal(size=(n_rows, len(self.bias)))
        return x.astype(np.float32)


def linear_gaussian(
    *, data_dim: int = 6, latent_dim: int = 2, posterior_error: float = 0.0, scale: float = 1.0
) -> LinearGaussian:
    """Return a model whose encoder is the exact posterior, its mean and log variance off by `posterior_error`.

    The smaller the weights' `scale`, the closer the posterior is to the prior.
    """
    network = Network(
        data_dim, latent_dim, encoder_hidden=(), decoder_hidden=(), likelihood="gaussian", mean="identity"
    )
    draw = np.random.default_rng(5)
    directions = np.linalg.qr(draw.normal(size=(data_dim, latent_dim)))[0].T
    # as float32 has them, so that the closed form is that of the very parameters
    weight = (scale * np.linspace(2.0, 0.7, latent_dim)[:, None] * directions).astype(np.float32).astype(float)
    bias = draw.normal(size=data_dim).astype(np.float32).astype(float)
    covariance = np.linalg.inv(np.eye(latent_dim) + weight @ weight.T / VARIANCE)

    params = np.zeros(network.layout.size, np.float32)
    views = network.layout.views(params)
    views["decoder.mean.W"][:], views["decoder.mean.b"][:] = weight, bias
    floor = network.logvar_floor
    views["decoder.logvar.b"][:] = floor + np.log(np.expm1(np.log(VARIANCE) - floor))
    views["encoder.mu.W"][:] = weight.T @ covariance / VARIANCE
    views["encoder.mu.b"][:] = posterior_error - bias @ weight.T @ covariance / VARIANCE
    views["encoder.logvar.b"][:] = np.log(np.diag(covariance)) + posterior_error
    return LinearGaussian(network, params, weight, bias, covariance)
