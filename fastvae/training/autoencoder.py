"""A deterministic autoencoder: no noise and no KL divergence, for comparing reconstructions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvae.data.arrays import on_host
from fastvae.kernels import Array
from fastvae.kernels.places import place_of
from fastvae.training.aevb import Buffers
from fastvae.training.composed import Composed

if TYPE_CHECKING:
    from fastvae.training.state import State

__all__ = ["Autoencoder"]


@dataclass(frozen=True)
class Autoencoder(Composed[Buffers]):
    """Ascend ``1/M sum log p(x | z = mu(x))`` in phi and theta.

    The encoder's log variances stay as they began, without any meaning; the codes have no prior, so that samples from
    N(0, I) mean little too.
    """

    statistics: ClassVar[tuple[str, ...]] = ("log_px",)
    has_bound: ClassVar[bool] = False

    def allocate(self, rows: int, dtype: Any) -> Buffers:
        """Allocate for M rows."""
        return Buffers.allocate(self.plan.network, rows, 1, dtype, place=place_of(self.plan))

    def measure(self, state: State, b: Buffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Compute the gradient of the reconstruction's log density; ``b.dlogvar`` stays zero."""
        plan, params = self.plan, state.params
        self.gather(b.x, index=index, step=step)
        plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
        plan.decoder_forward(params=params, z=b.mu, hidden=b.decoder_hidden, out=b.out)
        plan.likelihood(x=b.x, out=b.out, scale=1 / len(index), log_px=b.log_px, dout=b.dout)
        log_px = b.log_px.mean(dtype=np.float64).item()
        if np.isfinite(log_px):
            b.grad[:] = 0
            plan.decoder_backward(params=params, z=b.mu, hidden=b.decoder_hidden, dout=b.dout, dz=b.dmu, grad=b.grad)
            plan.encoder_backward(
                params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad
            )
        return (log_px,)

    def apply(self, state: State, b: Buffers, *, index: Array, step: int) -> None:
        """Update all but the log variances.

        The weight prior is put into the gradient: as a decay it would move them too, whose gradient is zero.
        """
        if self.decay:
            grad = on_host(b.grad) - self.decay * on_host(state.params)
            views = self.plan.network.layout.views(grad)
            views["encoder.logvar.W"][:] = 0
            views["encoder.logvar.b"][:] = 0
            b.grad[:] = grad
        self.plan.update(
            optimizer=self.optimizer, params=state.params, grad=b.grad, state=state.slots, step=step, decay=0.0
        )
