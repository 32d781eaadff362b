"""Every analytic gradient of the float64 reference against fourth-order central differences, relative error 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import naive
import numpy as np
import pytest

from fastvae.kernels import ESTIMATORS, Array, Plan
from fastvae.network import ACTIVATIONS, Network
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal
from fastvae.training.aevb import Buffers

LIMIT = 1e-6  # the project's promise
STEP = 1e-3  # of the differences: truncation STEP^4 ~ 1e-12, rounding 1e-16 / STEP ~ 1e-13, each times |objective|
FLOOR = 1e-3  # entries below this share of their tensor's largest are held to LIMIT of that share
BETA, DECAY = 0.7, 0.03

LIKELIHOODS = [("bernoulli", "sigmoid"), ("gaussian", "sigmoid"), ("gaussian", "identity")]
SHAPES = [((4,), (3,)), ((), ()), ((3, 2), (2, 4, 3))]


@dataclass
class Bound:
    """Objective of one minibatch with fixed noise as a function of the parameters, and its gradient."""

    plan: Plan
    network: Network
    x: Array
    eps: Array
    patterns: set[bytes] = field(default_factory=set)

    def forward(self, params: Array) -> Buffers:
        """Run encoder, sample, decoder and likelihood."""
        draws, rows, latent_dim = self.eps.shape
        b = Buffers.allocate(self.network, rows, draws, np.float64)
        b.x[:], b.eps[:] = self.x, self.eps
        self.plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
        self.plan.latent_forward(mu=b.mu, logvar=b.logvar, eps=b.eps, z=b.z, kl=b.kl)
        flat_z = b.z.reshape(-1, latent_dim)
        self.plan.decoder_forward(params=params, z=flat_z, hidden=b.decoder_hidden, out=b.out)
        self.plan.likelihood(x=b.x, out=b.out, scale=1 / (draws * rows), log_px=b.log_px, dout=b.dout)
        self.patterns.add(b"".join((h > 0).tobytes() for h in (*b.encoder_hidden, *b.decoder_hidden)))
        return b

    def __call__(self, params: Array) -> float:
        b = self.forward(params)
        return float(b.log_px.mean() - BETA * b.kl.mean() - DECAY / 2 * (params @ params))

    def gradient(self, params: Array) -> Array:
        b = self.forward(params)
        latent_dim, rows = self.eps.shape[2], self.eps.shape[1]
        flat_z, flat_dz = b.z.reshape(-1, latent_dim), b.dz.reshape(-1, latent_dim)
        self.plan.decoder_backward(
            params=params, z=flat_z, hidden=b.decoder_hidden, dout=b.dout, dz=flat_dz, grad=b.grad
        )
        self.plan.latent_backward(
            mu=b.mu, logvar=b.logvar, eps=b.eps, dz=b.dz, kl_scale=BETA / rows, dmu=b.dmu, dlogvar=b.dlogvar
        )
        self.plan.encoder_backward(
            params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad
        )
        return b.grad - DECAY * params


def numerical_gradient(function: Callable[[Array], float], point: Array) -> Array:
    """Fourth-order central differences, one coordinate at a time."""
    gradient = np.empty_like(point)
    for i in range(point.size):
        values = []
        for offset in (-2, -1, 1, 2):
            moved = point.copy()
            moved.reshape(-1)[i] += offset * STEP
            values.append(function(moved))
        gradient.reshape(-1)[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP)
    return gradient


def assert_gradients_agree(analytic: Array, numerical: Array, label: str) -> None:
    """Norm-wise, and entry by entry above a floor."""
    difference, largest = np.abs(analytic - numerical), np.abs(numerical).max()
    assert largest > 0, f"{label}: no gradient at all"
    assert np.linalg.norm(difference) <= LIMIT * np.linalg.norm(numerical), label
    share = difference / np.maximum(np.abs(numerical), FLOOR * largest)
    assert share.max() <= LIMIT, f"{label}: entry {int(share.argmax())} off by {share.max():.1e}"


def network_of(shape: Any, activation: str, likelihood: tuple[str, str]) -> Network:
    encoder_hidden, decoder_hidden = shape
    return Network(
        5,
        2,
        encoder_hidden=encoder_hidden,
        decoder_hidden=decoder_hidden,
        activation=activation,
        likelihood=likelihood[0],
        mean=likelihood[1],
        logvar_floor=-1.0,
    )


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids="-".join)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_every_parameter(
    reference_plan: Callable[..., Plan],
    draw_params: Callable[..., Array],
    shape: Any,
    activation: str,
    likelihood: tuple[str, str],
    draws: int,
) -> None:
    network = network_of(shape, activation, likelihood)
    draw, rows = np.random.default_rng(2), 3
    bound = Bound(
        reference_plan(network, rows=rows, draws=draws),
        network,
        x=draw.random((rows, network.data_dim)),
        eps=draw.normal(size=(draws, rows, network.latent_dim)),
    )
    params = draw_params(network, seed=4, dtype=np.float64)
    numerical = network.layout.views(numerical_gradient(bound, params))
    if activation == "relu":
        assert len(bound.patterns) == 1, "a difference stepped over a kink of relu: choose another seed"
    analytic = network.layout.views(bound.gradient(params))
    for name, expected in numerical.items():
        assert_gradients_agree(analytic[name], expected, name)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids="-".join)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_log_joint_in_z(
    reference_plan: Callable[..., Plan], draw_params: Callable[..., Array], activation: str, likelihood: tuple[str, str]
) -> None:
    network = network_of(((3,), (4, 3)), activation, likelihood)
    draw, rows, draws = np.random.default_rng(3), 2, 3
    plan = reference_plan(network, rows=rows, draws=draws)
    params, x = draw_params(network, seed=4, dtype=np.float64), draw.random((rows, network.data_dim))
    z = draw.normal(size=(draws * rows, network.latent_dim))
    log_pxz, dz = np.empty(len(z)), np.empty_like(z)
    hidden = tuple(np.empty((len(z), width)) for width in network.decoder_hidden)
    out = np.empty((len(z), network.decoder_dims[-1]))
    patterns = set()

    def total(point: Array) -> float:
        plan.log_joint(params=params, x=x, z=point, log_pxz=log_pxz, dz=None)
        plan.decoder_forward(params=params, z=point, hidden=hidden, out=out)
        patterns.add(b"".join((h > 0).tobytes() for h in hidden))
        return float(log_pxz.sum())

    numerical = numerical_gradient(total, z)
    assert activation != "relu" or len(patterns) == 1, "a difference stepped over a kink of relu: choose another seed"
    plan.log_joint(params=params, x=x, z=z, log_pxz=log_pxz, dz=dz)
    assert_gradients_agree(dz, numerical, "dz")


def test_gradient_of_the_sampled_latent(reference_plan: Callable[..., Plan]) -> None:
    """Of ``sum_l a_l z_l - weight_l kl_l``, whose derivative by z is a, in mu and logvar."""
    draws, rows, latent_dim = 3, 4, 2
    draw = np.random.default_rng(5)
    plan = reference_plan(network_of(SHAPES[0], "tanh", LIKELIHOODS[0]), rows=rows, draws=draws)
    heads, eps = draw.normal(size=(2, rows, latent_dim)), draw.normal(size=(draws, rows, latent_dim))
    dz, weight = draw.normal(size=eps.shape), draw.random((draws, rows))
    z, kl, gradient = np.empty_like(eps), np.empty((draws, rows)), np.empty_like(heads)

    def total(point: Array) -> float:
        plan.latent_forward_sampled(mu=point[0], logvar=point[1], eps=eps, z=z, kl=kl)
        return float((dz * z).sum() - (weight * kl).sum())

    numerical = numerical_gradient(total, heads)
    plan.latent_backward_sampled(
        mu=heads[0], logvar=heads[1], eps=eps, dz=dz, weight=weight, dmu=gradient[0], dlogvar=gradient[1]
    )
    for name, actual, expected in zip(("dmu", "dlogvar"), gradient, numerical, strict=True):
        assert_gradients_agree(actual, expected, name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids="-".join)
def test_a_training_step_follows_the_objective_of_the_loops(
    reference_plan: Callable[..., Plan],
    draw_params: Callable[..., Array],
    likelihood: tuple[str, str],
    estimator: str,
) -> None:
    """One plain gradient step of ``train_steps`` moves by the differences of `naive.objective`."""
    network = network_of(((3,), (3,)), "tanh", likelihood)
    rows, draws, seed, step = 2, 2, 6, 3
    data = np.random.default_rng(1).random((4, network.data_dim))
    order = np.array([[2, 0]])
    params = draw_params(network, seed=6, dtype=np.float64)
    eps = normal(seed=seed, step=step, stream=Stream.LATENT, shape=(draws, rows, network.latent_dim), dtype=np.float64)

    def objective(point: Array) -> float:
        constants: Any = {"estimator": estimator, "kl_weight": 1.5 * step / 4, "decay": DECAY}
        return naive.objective(network, point, data[order[0]], eps, **constants)[0]

    numerical = network.layout.views(numerical_gradient(objective, params))
    moved = params.copy()
    reference_plan(network, rows=rows, draws=draws).train_steps(
        params=moved,
        state=np.zeros((1, params.size)),
        optimizer=Optimizer("sgd", learning_rate=1.0, momentum=0.0),
        data=data,
        order=order,
        scale=1.0,
        binarize="none",
        seed=seed,
        step=step,
        estimator=estimator,
        kl_weight=1.5,
        kl_warmup=4,
        decay=DECAY,
        stats=np.empty((1, 2)),
        done=np.empty(1, np.int64),
    )
    for name, expected in numerical.items():
        assert_gradients_agree(network.layout.views(moved - params)[name], expected, name)
