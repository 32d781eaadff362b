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

__all__ = ["HMC", "TARGET_ACCEPTANCE", "adapted_step_size", "begin", "burn_in", "log_prior"]

# Section 5 of the paper.
TARGET_ACCEPTANCE = 0.9
# Every transition of a row takes a step size of its own, within so much of the one given: with the same number of
# equal steps always, a chain can come back to where it was by every orbit (Neal 2011, section 3.2). In Gaussians of one
# dimension at four steps and 90 % acceptance that happened: log p(x) from 500 samples was off by 0.08 nats, now 0.006.
JITTER = 0.2

# In units of the prior's standard deviation; too long a step is mended sooner than too short a one.
INITIAL_STEP_SIZE = 0.5


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
            Mean of e, which is drawn for every row.
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
        momenta, u, jitter = self._noise(step, len(x), z)
        e = (step_size * (1 + JITTER * (2 * jitter - 1))).astype(z.dtype)[:, np.newaxis]
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

    def _noise(self, step: int | Array, n_datapoints: int, z: Array) -> tuple[Array, Array, Array]:
        """Return momenta of shape (R, J), and uniforms of shape (R,) for acceptance and step size."""
        key: dict[str, Any] = {"seed": self.seed, "step": step}
        if np.ndim(step) == 0:
            momenta = normal(**key, stream=Stream.MOMENTUM, shape=z.shape, dtype=z.dtype)
            u = uniform(**key, stream=Stream.ACCEPT, shape=(len(z), 2))
        else:
            draws = len(z) // n_datapoints
            momenta = normal(**key, stream=Stream.MOMENTUM, shape=(draws, z.shape[1]), dtype=z.dtype)
            momenta = np.ascontiguousarray(momenta.swapaxes(0, 1)).reshape(z.shape)
            u = uniform(**key, stream=Stream.ACCEPT, shape=(draws, 2)).swapaxes(0, 1).reshape(-1, 2)
        return momenta, u[:, 0], u[:, 1]


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


def begin(plan: Plan, *, params: Array, x: Array, z: Array) -> dict[str, Any]:
    """Return the arrays of `HMC.transition` for chains that start at z."""
    log_density, grad = np.empty(len(z), z.dtype), np.empty_like(z)
    plan.log_joint(params=params, x=x, z=z, log_pxz=log_density, dz=grad)
    return {"params": params, "x": x, "z": z, "log_density": log_density, "grad": grad}


def burn_in(hmc: HMC, chains: dict[str, Any], *, keys: Array, n_transitions: int, target: float) -> Array:
    """Bring chains to the posterior, and tune a step size for each.

    Parameters
    ----------
    hmc : HMC
    chains : dict
        From `begin`, one chain per datapoint. Updated.
    keys : ndarray of shape (M,), uint64
        Transition t draws from step ``keys + t``.
    n_transitions : int
        The step size adapts at a rate that falls with the root of the transitions; what is taken from them is its
        geometric mean over the second half, which moves less.
    target : float
        Acceptance to aim at.

    Returns
    -------
    ndarray of shape (M,)
    """
    step_size, log_step_size = np.full(len(chains["z"]), INITIAL_STEP_SIZE), np.zeros(len(chains["z"]))
    half = n_transitions // 2
    for t in range(n_transitions):
        hmc.transition(**chains, step_size=step_size, step=keys + np.uint64(t))
        step_size = adapted_step_size(step_size, hmc.acceptance, target=target, rate=(1 + t) ** -0.5)
        if t >= half:
            log_step_size += np.log(step_size) / (n_transitions - half)
    return np.exp(log_step_size)
