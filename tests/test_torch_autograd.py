"""Bound and gradients of every engine against PyTorch's own layers, distributions and autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerances import relative_norm, tolerance

from fastvae.kernels import Array, Engine, Plan
from fastvae.network import ACTIVATIONS, Network
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal

torch = pytest.importorskip("torch")

ROWS, DRAWS, SEED, STEP = 5, 2, 9, 4
KL_WEIGHT, DECAY = 0.8, 0.02
LIKELIHOODS = [("bernoulli", "sigmoid"), ("gaussian", "sigmoid"), ("gaussian", "identity")]


def torch_mlp(network: Network, side: str, leaves: dict[str, Any], x: Any) -> tuple[Any, ...]:
    """Heads of the encoder or the decoder with PyTorch's functions."""
    functional = torch.nn.functional
    activation = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softplus": lambda a: functional.softplus(a, threshold=1e9),
        "sigmoid": torch.sigmoid,
    }[network.activation]
    hidden = network.encoder_hidden if side == "encoder" else network.decoder_hidden
    for i in range(len(hidden)):
        x = activation(functional.linear(x, leaves[f"{side}.{i}.W"].T, leaves[f"{side}.{i}.b"]))
    heads = ("mu", "logvar") if side == "encoder" else network.decoder_heads
    return tuple(functional.linear(x, leaves[f"{side}.{head}.W"].T, leaves[f"{side}.{head}.b"]) for head in heads)


def torch_log_likelihood(network: Network, heads: tuple[Any, ...], x: Any) -> Any:
    """log p(x|z) of each row from torch.distributions."""
    functional = torch.nn.functional
    if network.likelihood == "bernoulli":
        return -functional.binary_cross_entropy_with_logits(heads[0], x.expand_as(heads[0]), reduction="none").sum(-1)
    mean = torch.sigmoid(heads[0]) if network.mean == "sigmoid" else heads[0]
    floor = network.logvar_floor
    logvar = floor + functional.softplus(heads[1] - floor, threshold=1e9)
    return torch.distributions.Normal(mean, torch.exp(logvar / 2)).log_prob(x).sum(-1)


def torch_truth(
    network: Network, params: Array, x: Array, eps: Array, estimator: str
) -> tuple[float, float, dict[str, Array]]:
    """Mean log p(x|z), mean KL divergence, and the gradient of the objective by parameter."""
    views = network.layout.views(params.astype(np.float64))
    leaves = {name: torch.tensor(view, requires_grad=True) for name, view in views.items()}
    x_leaf = torch.tensor(x, dtype=torch.float64)
    mu, logvar = torch_mlp(network, "encoder", leaves, x_leaf)
    posterior = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    z = mu + torch.exp(logvar / 2) * torch.tensor(eps)
    analytic = estimator == "sgvb-b"
    kls = torch.distributions.kl_divergence(posterior, prior) if analytic else posterior.log_prob(z) - prior.log_prob(z)
    kl = kls.sum(-1).mean()
    log_px = torch_log_likelihood(network, torch_mlp(network, "decoder", leaves, z), x_leaf).mean()
    penalty = DECAY / 2 * sum((leaf**2).sum() for leaf in leaves.values())
    (log_px - KL_WEIGHT * kl - penalty).backward()
    return log_px.item(), kl.item(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids="-".join)
@pytest.mark.parametrize(
    ("activation", "estimator"), [*((name, "sgvb-b") for name in ACTIVATIONS), ("softplus", "sgvb-a")]
)
@pytest.mark.parametrize("hidden", [((23,), (17,)), ((), ()), ((9, 16), (16, 7, 9))], ids=str)
def test_bound_and_gradients(
    engine: Engine,
    draw_params: Callable[..., Array],
    hidden: Any,
    activation: str,
    estimator: str,
    likelihood: tuple[str, str],
) -> None:
    """One plain gradient step of rate 1 moves the parameters by the gradient itself."""
    network = Network(
        37,
        5,
        encoder_hidden=hidden[0],
        decoder_hidden=hidden[1],
        activation=activation,
        likelihood=likelihood[0],
        mean=likelihood[1],
        logvar_floor=-3.0,
    )
    data = np.random.default_rng(0).random((ROWS, network.data_dim)).astype(np.float32)
    params = draw_params(network, seed=1)
    eps = normal(seed=SEED, step=STEP, stream=Stream.LATENT, shape=(DRAWS, ROWS, 5), dtype=np.float64)
    log_px, kl, gradients = torch_truth(network, params, data, eps, estimator)
    for precision in engine.PRECISIONS:
        dtype = np.float64 if precision == "fp64" else np.float32
        # a momentum of 0 leaves the gradient itself in the state, free of the rounding of params + gradient
        state, stats = np.zeros((1, params.size), dtype), np.empty((1, 2))
        plan: Plan = engine.plan(network=network, rows=ROWS, draws=DRAWS, precision=precision, n_threads=2)
        plan.train_steps(
            params=params.astype(dtype),
            state=state,
            optimizer=Optimizer("sgd", learning_rate=1e-3, momentum=0.0),
            data=data,
            order=np.arange(ROWS)[None],
            scale=1.0,
            binarize="none",
            seed=SEED,
            step=STEP,
            estimator=estimator,
            kl_weight=KL_WEIGHT,
            kl_warmup=0,
            decay=DECAY,
            stats=stats,
            done=np.empty(1, np.int64),
        )
        limit = tolerance("autograd", precision)
        np.testing.assert_allclose(stats[0], (log_px, kl), rtol=limit)
        for name, actual in network.layout.views(state[0]).items():
            error = relative_norm(actual, gradients[name])
            assert error <= limit, f"{name} ({precision}): {error:.1e}"
