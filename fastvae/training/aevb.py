"""Auto-Encoding Variational Bayes (Algorithm 1) with either of its estimators, as contract operations and fused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.kernels.checks import check_estimator
from fastvae.kernels.places import Place, place_of
from fastvae.network import Network
from fastvae.rng import Stream
from fastvae.training.composed import Composed

if TYPE_CHECKING:
    from fastvae.training.state import State

__all__ = ["AEVB", "Buffers", "Fused", "SampledAEVB", "compose_forward", "compose_gradient"]


@dataclass
class Buffers:
    """The arrays between the operations of one step on M rows and L draws.

    The estimator says which it uses: SGVB-B and wake-sleep `kl` (M,), the others `sampled_kl` and `weight` (L, M).
    What NumPy computes on is NumPy's: `mu`, `logvar`, `eps`, `kl`, `sampled_kl`, `weight`, `log_px`, `dmu` and
    `dlogvar`. The others lie where the plan computes.
    """

    x: Array
    encoder_hidden: tuple[Array, ...]
    mu: Array
    logvar: Array
    eps: Array
    z: Array
    kl: Array
    sampled_kl: Array
    weight: Array
    decoder_hidden: tuple[Array, ...]
    out: Array
    log_px: Array
    dout: Array
    dz: Array
    dmu: Array
    dlogvar: Array
    grad: Array

    @classmethod
    def allocate(
        cls, network: Network, rows: int, draws: int, dtype: Any = np.float32, *, place: Place | None = None
    ) -> Buffers:
        """Allocate for a network, and a plan's place, by default NumPy's."""
        wide, latent = (rows, network.latent_dim), (draws, rows, network.latent_dim)

        def empty(*shape: int) -> Array:
            return np.zeros(shape, dtype)

        there = place.empty if place else empty
        return cls(
            x=there(rows, network.data_dim),
            encoder_hidden=tuple(there(rows, width) for width in network.encoder_hidden),
            mu=empty(*wide),
            logvar=empty(*wide),
            eps=empty(*latent),
            z=there(*latent),
            kl=empty(rows),
            sampled_kl=empty(draws, rows),
            weight=empty(draws, rows),
            decoder_hidden=tuple(there(draws * rows, width) for width in network.decoder_hidden),
            out=there(draws * rows, network.decoder_dims[-1]),
            log_px=empty(draws * rows),
            dout=there(draws * rows, network.decoder_dims[-1]),
            dz=there(*latent),
            dmu=empty(*wide),
            dlogvar=empty(*wide),
            grad=there(network.layout.size),
        )

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Name the arrays in the order in which a forward pass fills them."""
        yield "x", self.x
        yield from ((f"encoder hidden layer {i}", h) for i, h in enumerate(self.encoder_hidden))
        yield from (("mu", self.mu), ("logvar", self.logvar), ("z", self.z), ("kl", self.kl), ("kl", self.sampled_kl))
        yield from ((f"decoder hidden layer {i}", h) for i, h in enumerate(self.decoder_hidden))
        yield from (("the decoder's output", self.out), ("log_px", self.log_px))


def compose_forward(
    plan: Plan, b: Buffers, *, params: Array, theta: Array | None = None, estimator: str = "sgvb-b"
) -> tuple[float, float]:
    """Encode ``b.x``, sample with ``b.eps``, decode, and compare: an estimate of a minibatch's bound.

    ``b.dout`` is left as the gradient of the mean of log p(x|z). The decoder's parameters are `theta`'s, shape (P,),
    where it is given.

    Returns
    -------
    log_px, kl : float
        Means over the minibatch, in nats.

    Raises
    ------
    ValueError
        An unknown estimator.
    """
    check_estimator(estimator)
    draws, rows, latent_dim = b.z.shape
    plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
    kl = b.sampled_kl if estimator == "sgvb-a" else b.kl
    latent_forward = plan.latent_forward_sampled if estimator == "sgvb-a" else plan.latent_forward
    latent_forward(mu=b.mu, logvar=b.logvar, eps=b.eps, z=b.z, kl=kl)
    theta = params if theta is None else theta
    plan.decoder_forward(params=theta, z=b.z.reshape(-1, latent_dim), hidden=b.decoder_hidden, out=b.out)
    plan.likelihood(x=b.x, out=b.out, scale=1 / (draws * rows), log_px=b.log_px, dout=b.dout)
    return b.log_px.mean(dtype=np.float64).item(), kl.mean(dtype=np.float64).item()


def compose_gradient(
    plan: Plan, b: Buffers, *, params: Array, theta: Array | None = None, estimator: str = "sgvb-b", kl_weight: float
) -> tuple[float, float]:
    """Compute the gradient of the bound of ``b.x`` with the noise ``b.eps`` into ``b.grad``.

    Returns
    -------
    log_px, kl : float
        As `compose_forward`. When their difference is not finite, there is no gradient.
    """
    draws, rows, latent_dim = b.z.shape
    flat_z, flat_dz = b.z.reshape(-1, latent_dim), b.dz.reshape(-1, latent_dim)
    log_px, kl = compose_forward(plan, b, params=params, theta=theta, estimator=estimator)
    if not np.isfinite(log_px - kl):
        return log_px, kl

    b.grad[:] = 0
    theta = params if theta is None else theta
    plan.decoder_backward(params=theta, z=flat_z, hidden=b.decoder_hidden, dout=b.dout, dz=flat_dz, grad=b.grad)
    latent: dict[str, Array] = {"mu": b.mu, "logvar": b.logvar, "eps": b.eps, "dz": b.dz}
    if estimator == "sgvb-a":
        b.weight[:] = kl_weight / (draws * rows)
        plan.latent_backward_sampled(**latent, weight=b.weight, dmu=b.dmu, dlogvar=b.dlogvar)
    else:
        plan.latent_backward(**latent, kl_scale=kl_weight / rows, dmu=b.dmu, dlogvar=b.dlogvar)
    plan.encoder_backward(params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad)
    return log_px, kl


@dataclass(frozen=True)
class Fused(Composed[Buffers]):
    """An algorithm whose steps the engine fuses.

    Attributes
    ----------
    estimator : str
        Of the gradient that a step ascends: `fastvae.kernels.STEP_ESTIMATORS`.
    """

    estimator: ClassVar[str]

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        """Run ``train_steps``."""
        self.plan.train_steps(
            params=state.params,
            state=state.slots,
            optimizer=self.optimizer,
            data=self.dataset.rows,
            order=order,
            scale=self.dataset.scale,
            binarize=self.binarize,
            seed=self.seed,
            step=state.step,
            estimator=self.estimator,
            kl_weight=self.kl_weight,
            kl_warmup=self.kl_warmup,
            decay=self.decay,
            stats=stats,
            done=done,
        )

    def allocate(self, rows: int, dtype: Any) -> Buffers:
        """Allocate for M rows and the plan's L draws."""
        return Buffers.allocate(self.plan.network, rows, self.plan.draws, dtype, place=place_of(self.plan))


@dataclass(frozen=True)
class AEVB(Fused):
    """Algorithm 1 of the paper with the estimator SGVB-B (equation 7)."""

    estimator: ClassVar[str] = "sgvb-b"
    weighs_kl: ClassVar[bool] = True

    def measure(self, state: State, b: Buffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Compute the gradient of the bound with operations, as ``train_steps`` does in one piece."""
        self.gather(b.x, index=index, step=step)
        self.draw(b.eps, stream=Stream.LATENT, step=step)
        return compose_gradient(
            self.plan, b, params=state.params, estimator=self.estimator, kl_weight=self.kl_weight_at(step)
        )


@dataclass(frozen=True)
class SampledAEVB(AEVB):
    """The same with the estimator SGVB-A (equation 6)."""

    estimator: ClassVar[str] = "sgvb-a"
