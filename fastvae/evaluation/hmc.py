"""Hamiltonian Monte Carlo in the latent space, on all rows at once.

The target is ``p(z) p(x|z)^beta`` of every row of z at fixed parameters: the posterior at beta = 1, the prior at 0.
With momenta ``v ~ N(0, I)`` a transition makes `n_leapfrog` steps of

    v += e/2 dlog f(z);  z += e v;  v += e/2 dlog f(z)

and accepts where ``log u < log f(z') - v'^2/2 - log f(z) + v^2/2`` (Neal 2011, "MCMC using Hamiltonian dynamics").

Shapes: M datapoints, R = L M rows of z (draw-major, as in the contract), J latent dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.arguments import integer
from fastvae.kernels import Array, Plan
from fastvae.rng import Stream, normal, uniform

__all__ = ["HMC", "TARGET_ACCEPTANCE", "adapted_step_size", "log_prior"]

# Section 5 of the paper.
TARGET_ACCEPTANCE = 0.9


def log_prior(z: Array) -> Array:
    """Return log N(z; 0, I) of each row, float64."""
    squares = np.square(z, dtype=np.float64).sum(axis=-1)
    return np.asarray(-0.5 * (z.shape[-1] * np.log(2 * np.pi) + squares))


def adapted_step_size(
    step_size: float | Array, acceptance: float | Array, *, target: float = TARGET_ACCEPTANCE, rate: float = 0.5
) -> Any:
    """Return the step size after a transition of the burn-in: ``step_size * exp(rate * (acceptance - target))``.

    It stands still where the mean acceptance is the target. A chain leaves its target invariant only while its step
    size does not change with it, so samples are to be taken after this.

    Parameters
    ----------
    step_size : float or ndarray of shape (R,)
    acceptance : float or ndarray of shape (R,)
        ``HMC.acceptance``, or its mean for one step size of all rows.
    target : float
    rate : float

    Returns
    -------
    float or ndarray of shape (R,)
    """
    return step_size * np.exp(rate * (acceptance - target))


class HMC:
    """Transitions on one plan, with its buffers.

    Parameters
    ----------
    plan : Plan
        Up to ``plan.rows`` datapoints and ``plan.rows * plan.draws`` rows of z.
    n_leapfrog : int
        Steps per transition, each one gradient of log p(x, z).
    seed : int
        Key of momenta and acceptance.

    Attributes
    ----------
    acceptance : ndarray of shape (R,), float64
        Probability with which the last transition accepted each row, 0 where the proposal was not finite.

    Raises
    ------
    ValueError
        `n_leapfrog` is less than 1.
    """

    def __init__(self, plan: Plan, *, n_leapfrog: int, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.n_leapfrog = integer("n_leapfrog", n_leapfrog, low=1)
        rows, dtype = plan.rows * plan.draws, np.float64 if plan.precision == "fp64" else np.float32
        self._z, self._grad = (np.empty((rows, plan.network.latent_dim), dtype) for _ in range(2))
        self._log_density = np.empty(rows, dtype)
        self.acceptance = np.empty(0)

    def transition(
        self,
        *,
        params: Array,
        x: Array,
        z: Array,
        log_density: Array,
        grad: Array,
        step_size: float | Array,
        step: int | Array,
        beta: float = 1.0,
    ) -> Array:
        """Make one transition of every row, in place.

        `log_density` and `grad` are those of log p(x, z) whatever `beta` is: what ``Plan.log_joint`` gave for z before
        the first transition, and then what the last one left.

        Parameters
        ----------
        params : ndarray of shape (P,)
        x : ndarray of shape (M, D)
        z : ndarray of shape (R, J)
            Row r belongs to ``x[r % M]``. Updated.
        log_density : ndarray of shape (R,)
            log p(x, z) in nats, finite. Updated.
        grad : ndarray of shape (R, J)
            Its gradient in z. Updated.
        step_size : float or ndarray of shape (R,)
        step : int, or ndarray of shape (M,)
            Key of the noise, another one for every transition. Of an int the noise goes by the place of the row; with
            one per datapoint it goes by that alone, whatever stands beside it.
        beta : float
            Power of the likelihood.

        Returns
        -------
        ndarray of shape (R,), bool
            Which rows accepted. A proposal that is not finite is rejected.
        """
        rows = len(z)
        z_new, grad_new, log_new = self._z[:rows], self._grad[:rows], self._log_density[:rows]
        momenta, u = self._noise(step, len(x), z)
        e = np.asarray(step_size, z.dtype).reshape(-1, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # of proposals that are then rejected
            before = _tempered(log_density, z, beta) - _kinetic(momenta)
            np.copyto(z_new, z)
            np.copyto(grad_new, grad)
            momenta += e / 2 * _slope(grad_new, z_new, beta)
            for i in range(self.n_leapfrog):
                z_new += e * momenta
                self.plan.log_joint(params=params, x=x, z=z_new, log_pxz=log_new, dz=grad_new)
                momenta += (e if i < self.n_leapfrog - 1 else e / 2) * _slope(grad_new, z_new, beta)
            change = _tempered(log_new, z_new, beta) - _kinetic(momenta) - before
            change[~np.isfinite(change)] = -np.inf
        self.acceptance = np.exp(np.minimum(change, 0))
        accept = np.asarray(u < self.acceptance)
        for kept, proposed in ((z, z_new), (grad, grad_new)):
            np.copyto(kept, proposed, where=accept[:, np.newaxis])
        np.copyto(log_density, log_new, where=accept)
        return accept

    def _noise(self, step: int | Array, n_datapoints: int, z: Array) -> tuple[Array, Array]:
        """Return momenta of shape (R, J) and uniforms of shape (R,)."""
        rows, latent_dim = z.shape
        if np.ndim(step) == 0:
            momenta = normal(seed=self.seed, step=step, stream=Stream.MOMENTUM, shape=z.shape, dtype=z.dtype)
            return momenta, uniform(seed=self.seed, step=step, stream=Stream.ACCEPT, shape=(rows,))
        shape = (rows // n_datapoints, latent_dim)
        momenta = normal(seed=self.seed, step=step, stream=Stream.MOMENTUM, shape=shape, dtype=z.dtype)
        u = uniform(seed=self.seed, step=step, stream=Stream.ACCEPT, shape=shape[:1])
        return np.ascontiguousarray(momenta.swapaxes(0, 1)).reshape(z.shape), u.T.reshape(rows)


def _kinetic(momenta: Array) -> Array:
    return np.asarray(0.5 * np.square(momenta, dtype=np.float64).sum(axis=1))


def _tempered(log_pxz: Array, z: Array, beta: float) -> Array:
    """``log p(z) + beta log p(x|z)``, float64."""
    if beta == 1:
        return log_pxz.astype(np.float64)
    prior = log_prior(z)
    return np.asarray(prior + beta * (log_pxz - prior))


def _slope(grad: Array, z: Array, beta: float) -> Array:
    """Gradient of `_tempered` from that of log p(x, z)."""
    return grad if beta == 1 else beta * (grad + z) - z
