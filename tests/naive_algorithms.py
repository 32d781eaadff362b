"""The paper's other algorithms as loops over `naive`: what a step ascends, with its noise drawn.

`objective(values)` functions take flat parameters and are differentiated numerically by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import naive
from naive import Matrix, Vector

DREAM_LATENT, MOMENTUM, ACCEPT, PARAMETERS = 7, 9, 10, 11


def noise(rows: int, columns: int, *, first: int = 0, seed: int, step: int, stream: int) -> Matrix:
    """Standard normals of a stream, row by row, from element `first` on."""
    return [
        [naive.normal(first + m * columns + j, seed=seed, step=step, stream=stream) for j in range(columns)]
        for m in range(rows)
    ]


def draws_of_eps(n_draws: int, rows: int, columns: int, *, seed: int, step: int) -> list[Matrix]:
    return [
        noise(rows, columns, first=draw * rows * columns, seed=seed, step=step, stream=naive.LATENT)
        for draw in range(n_draws)
    ]


def mean_log_px(network: Any, params: Any, x: Matrix, z: Matrix) -> float:
    _, out = naive.decoder_forward(network, params, z)
    return sum(naive.likelihood(network, x, out, 1.0)[0]) / len(x)


def log_normal(value: float, mean: float, logvar: float) -> float:
    return -0.5 * (math.log(2 * math.pi) + logvar + (value - mean) ** 2 / math.exp(logvar))


def bound(network: Any, params: Any, x: Matrix, eps: list[Matrix]) -> tuple[float, float]:
    """Equation 7: mean log p(x|z) and KL divergence."""
    _, mu, logvar = naive.encoder_forward(network, params, x)
    z, kl = naive.latent_forward(mu, logvar, eps)
    return sum(mean_log_px(network, params, x, draw) for draw in z) / len(eps), sum(kl) / len(x)


def wake_sleep(
    network: Any, params: Any, x: Matrix, eps: list[Matrix], *, seed: int, step: int
) -> Callable[[Any], float]:
    """What theta and phi ascend, from z and dreams that come from `params` and stay as they are.

    Of a change of theta the first part alone depends, of one of phi the second.
    """
    _, mu, logvar = naive.encoder_forward(network, params, x)
    z, _ = naive.latent_forward(mu, logvar, eps)
    dream_z = noise(len(x), network.latent_dim, seed=seed, step=step, stream=DREAM_LATENT)
    _, out = naive.decoder_forward(network, params, dream_z)
    dreams = naive.likelihood_sample(network, out, seed, step)

    def objective(values: Any) -> float:
        wake = sum(mean_log_px(network, values, x, draw) for draw in z) / len(z)
        _, mu, logvar = naive.encoder_forward(network, values, dreams)
        sleep = sum(
            log_normal(dream_z[m][j], mu[m][j], logvar[m][j]) for m in range(len(x)) for j in range(network.latent_dim)
        )
        return wake + sleep / len(x)

    return objective


def importance_weighted(network: Any, params: Any, x: Matrix, eps: list[Matrix]) -> float:
    """Burda et al. 2016, equation 8: the mean of log 1/k sum_l p(x, z_l) / q(z_l|x)."""
    total = 0.0
    for m in range(len(x)):
        _, mu, logvar = naive.encoder_forward(network, params, [x[m]])
        log_w = []
        for draw in eps:
            z = [mu[0][j] + math.exp(logvar[0][j] / 2) * draw[m][j] for j in range(len(mu[0]))]
            log_p = sum(log_normal(value, 0.0, 0.0) for value in z)
            log_q = sum(log_normal(value, mean, logv) for value, mean, logv in zip(z, mu[0], logvar[0], strict=True))
            log_w.append(mean_log_px(network, params, [x[m]], [z]) + log_p - log_q)
        total += math.log(sum(map(math.exp, log_w)) / len(log_w))
    return total / len(x)


def autoencoder(network: Any, params: Any, x: Matrix) -> float:
    _, mu, _ = naive.encoder_forward(network, params, x)
    return mean_log_px(network, params, x, mu)


def full_vb(
    network: Any, params: Any, theta_logvar: Any, x: Matrix, eps: list[Matrix], *, n_rows: int, seed: int, step: int
) -> tuple[float, float, float]:
    """Appendix F, per datapoint: log p(x|z) and KL at the draw of theta, and theta's divergence from N(0, I) over N."""
    encoder, decoder = naive.unflatten(network, params)
    first = len(naive.flatten(encoder))
    drawn, divergence = [float(w) for w in params], 0.0
    for i in range(len(naive.flatten(decoder))):
        mean, logvar = float(params[first + i]), float(theta_logvar[first + i])
        drawn[first + i] = mean + math.exp(logvar / 2) * naive.normal(i, seed=seed, step=step, stream=PARAMETERS)
        divergence += -0.5 * (1 + logvar - mean**2 - math.exp(logvar))
    log_px, kl = bound(network, drawn, x, eps)
    return log_px, kl, divergence / n_rows


def hmc_transition(
    network: Any, params: Any, x: Matrix, z: Matrix, *, n_leapfrog: int, step_size: float, seed: int, step: int
) -> tuple[Matrix, Vector]:
    """One transition of every row and the probability of its acceptance (Neal 2011, figure 2)."""
    momenta = noise(len(z), len(z[0]), seed=seed, step=step, stream=MOMENTUM)
    kept, probabilities = [], []
    for m, start in enumerate(z):
        position, v = list(start), list(momenta[m])
        (before,), (slope,) = naive.log_joint(network, params, [x[m]], [position])
        before -= sum(value**2 for value in v) / 2
        for _ in range(n_leapfrog):
            v = [value + step_size / 2 * d for value, d in zip(v, slope, strict=True)]
            position = [value + step_size * speed for value, speed in zip(position, v, strict=True)]
            (after,), (slope,) = naive.log_joint(network, params, [x[m]], [position])
            v = [value + step_size / 2 * d for value, d in zip(v, slope, strict=True)]
        after -= sum(value**2 for value in v) / 2
        probabilities.append(min(1.0, math.exp(after - before)))
        u = naive.uniform(m, seed=seed, step=step, stream=ACCEPT)
        kept.append(position if u < probabilities[-1] else list(start))
    return kept, probabilities


def theta_gradient(network: Any, params: Any, x: Matrix, z: Matrix) -> Vector:
    """Gradient of the mean of log p(x|z) in theta; zero in phi."""
    hidden, out = naive.decoder_forward(network, params, z)
    _, dout = naive.likelihood(network, x, out, 1 / len(x))
    return naive.decoder_backward(network, params, z, hidden, dout)[1]
