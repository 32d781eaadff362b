"""The same training step in PyTorch and JAX as their users write it: data resident, one process, no loader."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from fastvae.backends import default_threads
from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.network import initialise
from fastvae.rng import epoch_order

__all__ = ["jax_runner", "torch_runner"]


def _check_case(case: Case) -> None:
    network = case.network
    if (network.activation, network.likelihood, case.optimizer.name) != ("tanh", "bernoulli", "adagrad"):
        raise ValueError(f"case {case.name!r} has no peers")


def torch_runner(case: Case, data: Dataset, *, n_threads: int, fused: bool) -> Callable[[int], None]:
    """Return ``run(n_steps)`` of eager PyTorch with its own, or its fused, Adagrad.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    """
    import torch
    from torch.nn import functional

    _check_case(case)
    torch.manual_seed(0)
    torch.set_num_threads(n_threads)

    def chain(dims: tuple[int, ...]) -> torch.nn.Sequential:
        layers = [m for k, n in pairwise(dims) for m in (torch.nn.Linear(k, n), torch.nn.Tanh())]
        return torch.nn.Sequential(*layers[:-1])

    encoder, decoder = chain(case.network.encoder_dims), chain(case.network.decoder_dims)
    optimizer = torch.optim.Adagrad(
        [*encoder.parameters(), *decoder.parameters()],
        lr=case.optimizer.learning_rate,
        eps=case.optimizer.epsilon,
        fused=fused,
    )
    rows = torch.from_numpy(data.rows).float() * data.scale
    order = torch.from_numpy(epoch_order(data.n_rows, seed=0, epoch=0)).split(case.batch_size)

    def run(n_steps: int) -> None:
        for index in order[:n_steps]:
            x = rows[index]
            mu, logvar = encoder(x).chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            log_px = -functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
            optimizer.zero_grad(set_to_none=True)
            ((kl - log_px) / len(index)).backward()
            optimizer.step()

    return run


def jax_runner(case: Case, data: Dataset, *, n_threads: int) -> Callable[[int], None]:
    """Return ``run(n_steps)`` of JAX: one compiled ``lax.scan`` over the steps, the state donated.

    `n_threads` must be every processor the process may use: XLA's thread pool cannot be made smaller from here.

    Raises
    ------
    ImportError
        JAX is not installed, or cannot run on this many threads.
    """
    import jax
    import jax.numpy as jnp

    _check_case(case)
    if n_threads != default_threads():
        raise ImportError(f"JAX runs on all {default_threads()} threads, not on {n_threads}")
    rate, epsilon = case.optimizer.learning_rate, case.optimizer.epsilon

    def chain(layers: list[tuple[Any, Any]], x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jnp.tanh(x @ weight + bias)
        return x @ layers[-1][0] + layers[-1][1]

    def loss(params: Any, x: Any, eps: Any) -> Any:
        mu, logvar = jnp.split(chain(params[0], x), 2, axis=1)
        a = chain(params[1], mu + jnp.exp(0.5 * logvar) * eps)
        log_px = (x * a - jax.nn.softplus(a)).sum()
        kl = -0.5 * (1 + logvar - mu**2 - jnp.exp(logvar)).sum()
        return (kl - log_px) / len(x)

    def step(carry: Any, index: Any) -> Any:
        params, squares, key = carry
        key, draw = jax.random.split(key)
        x = rows[index].astype(jnp.float32) * data.scale
        value, grads = jax.value_and_grad(loss)(params, x, jax.random.normal(draw, (len(index), latent_dim)))
        squares = jax.tree.map(lambda s, g: s + g * g, squares, grads)
        params = jax.tree.map(lambda p, g, s: p - rate * g * jax.lax.rsqrt(s + epsilon), params, grads, squares)
        return (params, squares, key), value

    latent_dim, rows = case.network.latent_dim, jnp.asarray(data.rows)
    flat = initialise(case.network, seed=0)
    layout = case.network.layout
    params = [
        [(jnp.asarray(layer.weight(flat)), jnp.asarray(layer.bias(flat))) for layer in side]
        for side in (layout.encoder, layout.decoder)
    ]
    carry = (params, jax.tree.map(jnp.zeros_like, params), jax.random.key(0))
    scan = jax.jit(lambda carry, order: jax.lax.scan(step, carry, order), donate_argnums=0)
    order = epoch_order(data.n_rows, seed=0, epoch=0)

    def run(n_steps: int) -> None:
        nonlocal carry
        carry, values = scan(carry, order[: n_steps * case.batch_size].reshape(n_steps, case.batch_size))
        jax.block_until_ready(values)

    return run
