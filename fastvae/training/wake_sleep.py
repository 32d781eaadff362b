"""The wake-sleep algorithm (Hinton et al. 1995), the paper's comparison in section 5 and figures 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.rng import Stream
from fastvae.training.aevb import Buffers, Fused, compose_forward

if TYPE_CHECKING:
    from fastvae.training.state import State

__all__ = ["WakeSleep", "compose_wake_sleep"]


class Draw(Protocol):
    """Fills an array with standard normals of a stream."""

    def __call__(self, out: Array, /, *, stream: Stream, step: int) -> None:
        """Draw."""


def compose_wake_sleep(
    plan: Plan, b: Buffers, *, params: Array, seed: int, step: int, draw: Draw
) -> tuple[float, float]:
    """Compute theta's gradient awake, of ``b.x`` with the noise ``b.eps``, and phi's asleep, into ``b.grad``.

    The sleep phase uses the arrays of the wake phase again. With ``eps = (z - mu) exp(-logvar / 2)``:
    ``d log q / d mu = eps exp(-logvar / 2)``, ``d log q / d logvar = (eps^2 - 1) / 2``.

    Returns
    -------
    log_px, kl : float
        Of the wake phase, as `compose_forward`. When their difference is not finite, there is no gradient.
    """
    log_px, kl = compose_forward(plan, b, params=params)
    if not np.isfinite(log_px - kl):
        return log_px, kl
    b.grad[:] = 0
    flat_z, rows = b.z.reshape(-1, b.z.shape[-1]), len(b.x)
    plan.decoder_backward(params=params, z=flat_z, hidden=b.decoder_hidden, dout=b.dout, dz=None, grad=b.grad)

    z, out, hidden = b.eps[0], b.out[:rows], tuple(h[:rows] for h in b.decoder_hidden)
    draw(z, stream=Stream.DREAM_LATENT, step=step)
    plan.decoder_forward(params=params, z=z, hidden=hidden, out=out)
    plan.likelihood_sample(out=out, seed=seed, step=step, x=b.x)
    plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
    inverse_sd = np.exp(-b.logvar / 2)
    eps = (z - b.mu) * inverse_sd
    b.dmu[:] = eps * inverse_sd / rows
    b.dlogvar[:] = (eps * eps - 1) / (2 * rows)
    plan.encoder_backward(params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad)
    return log_px, kl


@dataclass(frozen=True)
class WakeSleep(Fused):
    """Wake-sleep with the recognition model of AEVB, both phases in every step (section 5).

    *Wake*: z ~ q(z|x) for a minibatch of data; theta ascends ``1/(L M) sum log p(x|z)``.
    *Sleep*: as many dreams, z ~ N(0, I) and x ~ p(x|z); phi ascends ``1/M sum log q(z|x)``.

    Both gradients are taken at the same parameters and go into one update, so that an optimizer has one state. The two
    objectives together are no bound, as the paper notes in section 4. The statistics are those of the wake phase:
    log p(x|z), and the analytic KL divergence of q(z|x) from the prior; their difference estimates the same bound as
    AEVB's (equation 7). It may be astronomically low in the first epoch: q has then seen dreams alone, which look like
    no data, and nothing holds its variance at data.
    """

    estimator: ClassVar[str] = "wake-sleep"

    def measure(self, state: State, b: Buffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Compute both gradients with operations, as ``train_steps`` does in one piece."""
        self.gather(b.x, index=index, step=step)
        self.draw(b.eps, stream=Stream.LATENT, step=step)
        return compose_wake_sleep(self.plan, b, params=state.params, seed=self.seed, step=step, draw=self.draw)
