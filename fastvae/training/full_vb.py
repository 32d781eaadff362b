"""Full variational Bayes (appendix F): a distribution over the decoder's parameters too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvae.data.arrays import on_host
from fastvae.kernels import Array
from fastvae.kernels.places import place_of
from fastvae.rng import Stream
from fastvae.training.aevb import Buffers, compose_gradient
from fastvae.training.composed import Composed

if TYPE_CHECKING:
    from fastvae.network import Network
    from fastvae.training.state import State

__all__ = ["INITIAL_SD", "FullVB"]

# Of q(theta): small beside initial weights of 1 / sqrt(fan_in), so that training begins as AEVB does. The divergence
# from N(0, I) then widens those of little use.
INITIAL_SD = 0.01


@dataclass
class FullVBBuffers:
    """The arrays of a step; theta's are parts of whole buffers (P,), whose encoder parts nobody reads."""

    latent: Buffers
    theta: Array  # (P,), the draw
    zeta: Array  # (T,) for the T parameters of the decoder
    sd: Array  # (T,), and then its product with zeta
    grad_logvar: Array  # (P,)

    @property
    def grad(self) -> Array:
        """Gradient in the encoder's parameters and theta's means."""
        return self.latent.grad

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Name the arrays in the order in which a step fills them."""
        yield "the draw of theta", self.theta
        yield from self.latent.tensors()


@dataclass(frozen=True)
class FullVB(Composed[FullVBBuffers]):
    """Ascend a bound of log p(X) with q(theta) = N(m, diag s^2) over the decoder's T parameters (appendix F).

    Every step draws ``theta = m + s zeta`` from stream PARAMETERS and ascends, in phi, m and log s^2,
    ``1/M sum [1/L sum log p(x|z; theta) - beta kl] - KL(q(theta) || N(0, I)) / N``, with
    ``KL = 1/2 sum m^2 + s^2 - 1 - log s^2`` in closed form. The encoder is not random. The means are the decoder's part
    of the parameters, by which the model predicts; ``extra["theta_logvar"]`` has log s^2, with an optimizer state of
    its own.

    `decay` is 1 / N always. Statistics: log p(x|z), the KL divergence of z, and that of theta divided by N.
    """

    statistics: ClassVar[tuple[str, ...]] = ("log_px", "kl", "kl_theta")
    weighs_kl: ClassVar[bool] = True
    updated_extra: ClassVar[tuple[str, ...]] = ("theta_logvar", "theta_slots")

    @staticmethod
    def extra_shapes(network: Network, *, n_slots: int, n_rows: int) -> dict[str, tuple[int, ...]]:
        """Return those of log s^2 and its optimizer state, as wide as all parameters: `Plan.update` takes no others."""
        return {"theta_logvar": (network.layout.size,), "theta_slots": (n_slots, network.layout.size)}

    @staticmethod
    def initialise_extra(extra: dict[str, Array], *, seed: int) -> None:
        """Set every s to `INITIAL_SD`."""
        extra["theta_logvar"][:] = 2 * log(INITIAL_SD)

    def allocate(self, rows: int, dtype: Any) -> FullVBBuffers:
        """Allocate for M rows and the plan's L draws."""
        layout, place = self.plan.network.layout, place_of(self.plan)
        n_theta = layout.size - layout.encoder[-1].end
        b = FullVBBuffers(
            latent=Buffers.allocate(self.plan.network, rows, self.plan.draws, dtype, place=place),
            theta=place.empty(layout.size),
            zeta=np.empty(n_theta, dtype),
            sd=np.empty(n_theta, dtype),
            grad_logvar=place.empty(layout.size),
        )
        b.theta[:], b.grad_logvar[:] = 0, 0
        return b

    def measure(self, state: State, b: FullVBBuffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Draw theta, and compute the gradients in phi and m (``b.grad``) and in log s^2 (``b.grad_logvar``)."""
        theta, decay = slice(self.plan.network.layout.encoder[-1].end, None), state.params.dtype.type(self.decay)
        mean, logvar = on_host(state.params[theta]), on_host(state.extra["theta_logvar"][theta])
        self.draw(b.zeta, stream=Stream.PARAMETERS, step=step)
        np.exp(logvar / 2, out=b.sd)
        excess = b.sd * b.sd - 1
        kl_theta = 0.5 * self.decay * (mean * mean + excess - logvar).sum(dtype=np.float64).item()
        b.sd *= b.zeta
        b.theta[theta] = mean + b.sd
        self.gather(b.latent.x, index=index, step=step)
        self.draw(b.latent.eps, stream=Stream.LATENT, step=step)
        log_px, kl = compose_gradient(
            self.plan, b.latent, params=state.params, theta=b.theta, kl_weight=self.kl_weight_at(step)
        )
        if np.isfinite(log_px - kl):
            # theta = m + s zeta: d theta / d log s^2 is s zeta / 2.
            grad = on_host(b.grad[theta])
            b.grad_logvar[theta] = 0.5 * (b.sd * grad - decay * excess)
            b.grad[theta] = grad - decay * mean
        return log_px, kl, kl_theta

    def apply(self, state: State, b: FullVBBuffers, *, index: Array, step: int) -> None:
        """Update parameters and log s^2; the divergence from N(0, I) stands in place of a decay."""
        self.plan.update(
            optimizer=self.optimizer, params=state.params, grad=b.grad, state=state.slots, step=step, decay=0.0
        )
        self.plan.update(
            optimizer=self.optimizer,
            params=state.extra["theta_logvar"],
            grad=b.grad_logvar,
            state=state.extra["theta_slots"],
            step=step,
            decay=0.0,
        )
