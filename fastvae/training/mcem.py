"""Monte Carlo EM (section 5 and appendix E): no recognition model, but a Markov chain for every datapoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvae.data.arrays import on_host
from fastvae.evaluation.hmc import HMC, adapted_step_size, log_prior
from fastvae.kernels import Array
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal
from fastvae.training.composed import Composed

if TYPE_CHECKING:
    from fastvae.network import Network
    from fastvae.training.state import State

__all__ = ["MCEM"]

# Of the paper; the step size is tuned to `fastvae.evaluation.hmc.TARGET_ACCEPTANCE`.
N_LEAPFROG = 10
N_UPDATES = 5

INITIAL_STEP_SIZE = 0.1


@dataclass
class MCEMBuffers:
    """The arrays of a step on M rows."""

    hmc: HMC
    x: Array
    z: Array
    log_pxz: Array
    dz: Array
    hidden: tuple[Array, ...]
    out: Array
    log_px: Array
    dout: Array
    grad: Array

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Name the arrays in the order in which a step fills them."""
        yield from (("x", self.x), ("log p(x, z)", self.log_pxz), ("its gradient", self.dz), ("z", self.z))
        yield from ((f"decoder hidden layer {i}", h) for i, h in enumerate(self.hidden))
        yield from (("the decoder's output", self.out), ("log_px", self.log_px))


@dataclass(frozen=True)
class MCEM(Composed[MCEMBuffers]):
    """Monte Carlo EM: theta ascends log p(x|z) at z from the posterior p(z|x), sampled by Hamiltonian Monte Carlo.

    ``extra["z"]`` keeps a z for every datapoint, begun as a draw of the prior. A step makes one transition of
    `N_LEAPFROG` leapfrog steps from there for the datapoints of its minibatch, tunes ``extra["step_size"]`` towards
    an acceptance of 90 %, and then updates theta `N_UPDATES` times at the z so sampled (appendix E). The optimizer
    counts each of these. The encoder stays as it began.

    Statistics: log p(x|z) and log p(x, z) before the updates, in nats, and the acceptance rate. There is no bound.
    """

    statistics: ClassVar[tuple[str, ...]] = ("log_px", "log_pxz", "acceptance")
    has_bound: ClassVar[bool] = False
    encodes: ClassVar[bool] = False

    @staticmethod
    def extra_shapes(network: Network, *, n_slots: int, n_rows: int) -> dict[str, tuple[int, ...]]:
        """Return those of all z, and of the step size."""
        return {"z": (n_rows, network.latent_dim), "step_size": (1,)}

    @staticmethod
    def initialise_extra(extra: dict[str, Array], *, seed: int) -> None:
        """Draw every z from the prior."""
        z = extra["z"]
        z[:] = normal(seed=seed, step=0, stream=Stream.LATENT, shape=z.shape, dtype=z.dtype)
        extra["step_size"][:] = INITIAL_STEP_SIZE

    def allocate(self, rows: int, dtype: Any) -> MCEMBuffers:
        """Allocate for M rows."""
        network, there = self.plan.network, place_of(self.plan).empty
        b = MCEMBuffers(
            hmc=HMC(self.plan, n_leapfrog=N_LEAPFROG, seed=self.seed),
            x=there(rows, network.data_dim),
            z=np.empty((rows, network.latent_dim), dtype),
            log_pxz=np.empty(rows, dtype),
            dz=np.empty((rows, network.latent_dim), dtype),
            hidden=tuple(there(rows, width) for width in network.decoder_hidden),
            out=there(rows, network.decoder_dims[-1]),
            log_px=np.empty(rows, dtype),
            dout=there(rows, network.decoder_dims[-1]),
            grad=there(network.layout.size),
        )
        b.grad[:] = 0
        return b

    def measure(self, state: State, b: MCEMBuffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Sample z, the E step, and compute the gradient of the first update."""
        self.gather(b.x, index=index, step=step)
        np.take(state.extra["z"], index, axis=0, out=b.z)
        self.plan.log_joint(params=state.params, x=b.x, z=b.z, log_pxz=b.log_pxz, dz=b.dz)
        b.hmc.transition(
            params=state.params,
            x=b.x,
            z=b.z,
            log_density=b.log_pxz,
            grad=b.dz,
            step_size=state.extra["step_size"].item(),
            step=step,
        )
        log_px = self._ascend(state.params, b)
        return log_px, log_px + log_prior(b.z).mean().item(), b.hmc.acceptance.mean().item()

    def _ascend(self, params: Array, b: MCEMBuffers) -> float:
        """Compute theta's gradient of the mean of log p(x|z), with the weight prior's, and return the mean."""
        plan, theta = self.plan, slice(self.plan.network.layout.encoder[-1].end, None)
        plan.decoder_forward(params=params, z=b.z, hidden=b.hidden, out=b.out)
        plan.likelihood(x=b.x, out=b.out, scale=1 / len(b.x), log_px=b.log_px, dout=b.dout)
        b.grad[theta] = on_host(params[theta]) * -self.decay if self.decay else 0
        plan.decoder_backward(params=params, z=b.z, hidden=b.hidden, dout=b.dout, dz=None, grad=b.grad)
        return float(b.log_px.mean(dtype=np.float64))

    def apply(self, state: State, b: MCEMBuffers, *, index: Array, step: int) -> None:
        """Keep z, tune the step size, and make the updates of the M step.

        The weight prior is in the gradient: as a decay it would move the encoder, whose gradient is zero.
        """
        state.extra["z"][index] = b.z
        state.extra["step_size"][:] = adapted_step_size(state.extra["step_size"], b.hmc.acceptance.mean().item())
        for i in range(N_UPDATES):
            if i:
                self._ascend(state.params, b)
            self.plan.update(
                optimizer=self.optimizer,
                params=state.params,
                grad=b.grad,
                state=state.slots,
                step=N_UPDATES * step + i,
                decay=0.0,
            )
