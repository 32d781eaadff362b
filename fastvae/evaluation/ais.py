"""log p(x) by annealed importance sampling (Neal 2001; Wu et al. 2017), and a sandwich around it.

The path ``f_t(z) = p(z) p(x|z)^beta_t`` leads from the prior at ``beta_0 = 0`` to the posterior at ``beta_T = 1``. A
chain starts at a draw of the prior. For t = 1..T it gains ``(beta_t - beta_t-1) log p(x|z)`` and moves by a transition
of Hamiltonian Monte Carlo that leaves f_t invariant. The mean of exp(gain) over chains is an unbiased estimate of p(x),
so its logarithm is a lower bound in expectation. Bidirectional Monte Carlo (Grosse et al. 2015) runs the path backwards
from an exact draw of the posterior, which is known for data that the model itself has made, and gives an upper bound.

Shapes: M datapoints, C chains each, T temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvae.arguments import integer
from fastvae.data import Dataset, as_dataset
from fastvae.evaluation.hmc import HMC, INITIAL_STEP_SIZE, adapted_step_size, begin, log_prior
from fastvae.evaluation.inference import gathered_batches
from fastvae.evaluation.result import LogLikelihood, mean_error, row_hashes, rows_key, treatment
from fastvae.evaluation.simulation import simulate
from fastvae.evaluation.weights import WeightSums
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal

__all__ = ["Sandwich", "evaluate_ais", "inverse_temperatures", "sandwich"]

# About the most efficient for Hamiltonian Monte Carlo (Neal 2011, section 4.4).
ACCEPTANCE = 0.65
# Transitions of each pass draw from steps of their own.
FORWARD, REVERSE, PILOT = (np.uint64(part << 30) for part in range(3))
MAX_TEMPERATURES = 2**30 - 1


def inverse_temperatures(n_temperatures: int) -> Array:
    """Return ``beta_t`` for t = 0..T: ``sigmoid(4 (2 t/T - 1))``, moved and scaled to run from 0 to 1.

    Many close to either end, where p(x|z) counts for most.
    """
    t = np.linspace(-1, 1, n_temperatures + 1)
    betas = 1 / (1 + np.exp(-4 * t))
    return np.asarray((betas - betas[0]) / (betas[-1] - betas[0]))


def evaluate_ais(
    plan: Plan,
    params: Array,
    dataset: Dataset,
    *,
    n_draws: int = 16,
    n_temperatures: int = 1000,
    n_leapfrog: int = 10,
    seed: int,
    binarize: str = "none",
    split: str | None = None,
) -> LogLikelihood:
    """Estimate log p(x) of each row by annealed importance sampling; needs no recognition model.

    Step sizes are tuned for each row and temperature by a pilot run of other draws on a tenth of the temperatures, and
    are then kept, so that the estimate of p(x) is unbiased.

    Parameters
    ----------
    plan : Plan
        Its ``rows * draws`` rows of z hold the chains of as many datapoints at once as fit.
    params : ndarray of shape (P,)
    dataset : Dataset
    n_draws : int
        C, chains per row.
    n_temperatures : int
        T.
    n_leapfrog : int
        Steps per transition: the cost is C T times this, in gradients of log p(x, z) per row, and a tenth more.
    seed : int
        Key of all draws. A row's go by its values, whatever rows stand beside it.
    binarize : {"none", "dynamic", "fixed"}
        As trained with, see `fastvae.evaluation.result.treatment`.
    split : str, optional
        Which part of the data these are.

    Returns
    -------
    LogLikelihood
        Its effective sample size is that of the chains' weights.

    Raises
    ------
    ValueError
        An argument is out of range, or a row's chains do not fit in the plan.
    """
    binarize, treated = treatment(dataset, binarize)
    sums, acceptance = WeightSums(dataset.n_rows), np.empty(dataset.n_rows)
    hashes = np.empty(dataset.n_rows, np.int64)
    options = {"n_temperatures": n_temperatures, "n_leapfrog": n_leapfrog}
    batches = _annealed_batches(plan, params, dataset, n_draws=n_draws, seed=seed, binarize=binarize, **options)
    for rows, annealing in batches:
        hashes[rows] = annealing.hashes
        log_weights, acceptance[rows] = annealing.forward()
        sums.add(rows, log_weights)
    return LogLikelihood(
        log_likelihood=sums.log_mean,
        standard_error=sums.standard_error(),
        effective_sample_size=sums.effective_sample_size,
        acceptance=acceptance,
        options=options,
        estimator="ais",
        n_draws=n_draws,
        seed=seed,
        treatment=treated,
        rows_key=rows_key(hashes, binarize, seed),
        split=split,
    )


@dataclass(frozen=True)
class Sandwich:
    """Bounds on log p(x) from below and above, of rows that the model itself has made.

    How far apart they are says how far `evaluate_ais` with the same settings is from the truth, on data like these.

    Attributes
    ----------
    lower, upper : LogLikelihood
        All reverse chains of a row start from the one draw of its posterior that is exact, so their spread does not
        have the error of that draw: standard errors and effective sample sizes of `upper` are NaN. Over rows, which
        are independent, the error of `gap` is known; it has those of both sides.
    """

    lower: LogLikelihood
    upper: LogLikelihood

    @property
    def gap(self) -> float:
        """Mean distance in nats per datapoint."""
        return float((self.upper.values - self.lower.values).mean())

    def summary(self) -> dict[str, Any]:
        """Return the means, their distance, and how they were measured, as JSON-serialisable values.

        ``gap_standard_error``, over rows, is also the most that other draws would change in either mean.
        """
        bounds = {"lower": self.lower, "upper": self.upper}
        values: dict[str, Any] = {side: bound.values.mean().item() for side, bound in bounds.items()}
        values |= {"gap": self.gap, "gap_standard_error": mean_error(self.upper.values - self.lower.values)}
        values |= {f"acceptance_{side}": bound.summary()["acceptance"] for side, bound in bounds.items()}
        shared = self.lower.summary()
        values |= {f"{name}_lower": shared[name] for name in ("monte_carlo_error", "effective_sample_size")}
        return (
            values
            | {name: shared[name] for name in ("n_rows", "n_draws", "evaluation_seed", "treatment")}
            | dict(self.lower.options)
        )


def sandwich(
    plan: Plan,
    params: Array,
    *,
    n_rows: int = 100,
    n_draws: int = 16,
    n_temperatures: int = 1000,
    n_leapfrog: int = 10,
    seed: int,
) -> Sandwich:
    """Bound log p(x) from both sides on rows drawn from the model (bidirectional Monte Carlo).

    Parameters
    ----------
    plan, params, n_draws, n_temperatures, n_leapfrog, seed
        As for `evaluate_ais`.
    n_rows : int
        Rows drawn.

    Returns
    -------
    Sandwich

    Raises
    ------
    ValueError
        As `evaluate_ais`.
    """
    n_rows = integer("n_rows", n_rows, low=1)
    x, z = simulate(plan, params, n_rows=n_rows, seed=seed)
    dataset = as_dataset(x, scale=1.0, name="simulated rows")
    lower, upper, acceptances = WeightSums(n_rows), WeightSums(n_rows), np.empty((2, n_rows))
    hashes = np.empty(n_rows, np.int64)
    options = {"n_temperatures": n_temperatures, "n_leapfrog": n_leapfrog}
    batches = _annealed_batches(plan, params, dataset, n_draws=n_draws, seed=seed, binarize="none", **options)
    for rows, annealing in batches:
        hashes[rows] = annealing.hashes
        passes = annealing.forward(), annealing.reverse(z[rows])
        for sums, acceptance, (log_weights, accepted) in zip((lower, upper), acceptances, passes, strict=True):
            sums.add(rows, log_weights)
            acceptance[rows] = accepted
    sides = []
    unknown = np.full(n_rows, np.nan)
    for name, log_likelihood, standard_error, effective_sample_size, acceptance in (
        ("ais", lower.log_mean, lower.standard_error(), lower.effective_sample_size, acceptances[0]),
        ("reverse ais", -upper.log_mean, unknown, unknown, acceptances[1]),
    ):
        side = LogLikelihood(
            log_likelihood=log_likelihood,
            standard_error=standard_error,
            effective_sample_size=effective_sample_size,
            acceptance=acceptance,
            options=options,
            estimator=name,
            n_draws=n_draws,
            seed=seed,
            treatment="drawn from the model",
            rows_key=rows_key(hashes, "none", seed),
        )
        sides.append(side)
    return Sandwich(*sides)


def _annealed_batches(
    plan: Plan,
    params: Array,
    dataset: Dataset,
    *,
    n_draws: int,
    n_temperatures: int,
    n_leapfrog: int,
    seed: int,
    binarize: str,
) -> Iterator[tuple[slice, _Annealing]]:
    """Yield the annealing of as many rows at once as the plan holds chains of."""
    n_draws = integer("n_draws", n_draws, low=1)
    betas = inverse_temperatures(integer("n_temperatures", n_temperatures, low=1, high=MAX_TEMPERATURES))
    capacity = plan.rows * plan.draws
    if n_draws > capacity:
        raise ValueError(f"n_draws must be at most {capacity}, the chains that the plan holds at once, got {n_draws}")
    hmc, params = HMC(plan, n_leapfrog=n_leapfrog, seed=seed), place_of(plan).placed(params)
    batch = min(capacity // n_draws, plan.rows)
    for rows, x in gathered_batches(plan, dataset, binarize=binarize, seed=seed, batch=batch):
        yield rows, _Annealing(hmc, params, x, row_hashes(dataset, rows), n_draws=n_draws, betas=betas)


class _Annealing:
    """Both passes over some rows, with step sizes tuned by a pilot run."""

    def __init__(self, hmc: HMC, params: Array, x: Array, hashes: Array, *, n_draws: int, betas: Array) -> None:
        self.hmc, self.params, self.x, self.hashes, self.betas = hmc, params, x, hashes, betas
        self.n_draws, self.n_temperatures = n_draws, len(betas) - 1
        self.keys = hashes.astype(np.uint64) << np.uint64(32)
        self.step_sizes = self._pilot(min(self.n_temperatures, max(self.n_temperatures // 10, 50)))

    def forward(self) -> tuple[Array, Array]:
        """Return the logarithms of the chains' weights (M, C), whose mean estimates p(x), and acceptance (M,)."""
        chains, log_weights = self._begin(self._prior(FORWARD)), 0.0
        acceptance = np.zeros(len(self.x))
        for t in range(1, self.n_temperatures + 1):
            log_weights = log_weights + (self.betas[t] - self.betas[t - 1]) * _log_likelihood(chains)
            acceptance += self._transition(chains, t, FORWARD)
        return self._by_row(log_weights), acceptance / self.n_temperatures

    def reverse(self, z: Array) -> tuple[Array, Array]:
        """Return the same from exact draws z (M, J) of the posterior; the mean of these weights estimates 1 / p(x)."""
        chains, log_weights = self._begin(np.tile(z, (self.n_draws, 1))), 0.0
        acceptance = np.zeros(len(self.x))
        for t in range(self.n_temperatures, 0, -1):
            acceptance += self._transition(chains, t, REVERSE)
            log_weights = log_weights - (self.betas[t] - self.betas[t - 1]) * _log_likelihood(chains)
        return self._by_row(log_weights), acceptance / self.n_temperatures

    def _pilot(self, n_temperatures: int) -> Array:
        """Return step sizes of shape (T', M) that follow the wanted acceptance along the path."""
        chains, step_sizes = self._begin(self._prior(PILOT)), np.empty((n_temperatures, len(self.x)))
        step_size = np.full(len(self.x), INITIAL_STEP_SIZE)
        for t, beta in enumerate(inverse_temperatures(n_temperatures)[1:]):
            self.hmc.transition(
                **chains, step_size=np.tile(step_size, self.n_draws), step=self.keys + PILOT + np.uint64(t), beta=beta
            )
            acceptance = self._by_row(self.hmc.acceptance).mean(axis=1)
            step_size = adapted_step_size(step_size, acceptance, target=ACCEPTANCE)
            step_sizes[t] = step_size
        return step_sizes

    def _transition(self, chains: dict[str, Any], t: int, part: np.uint64) -> Array:
        """Move by the density at temperature t; return each row's share of accepted chains."""
        step_size = self.step_sizes[(t - 1) * len(self.step_sizes) // self.n_temperatures]
        accept = self.hmc.transition(
            **chains,
            step_size=np.tile(step_size, self.n_draws),
            step=self.keys + part + np.uint64(t),
            beta=float(self.betas[t]),
        )
        return np.asarray(self._by_row(accept).mean(axis=1))

    def _prior(self, part: np.uint64) -> Array:
        shape = (self.n_draws, self.hmc.plan.network.latent_dim)
        z = normal(seed=self.hmc.seed, step=self.keys + part, stream=Stream.AIS, shape=shape, dtype=self.x.dtype)
        return np.ascontiguousarray(z.swapaxes(0, 1)).reshape(-1, shape[1])

    def _begin(self, z: Array) -> dict[str, Any]:
        return begin(self.hmc.plan, params=self.params, x=self.x, z=z)

    def _by_row(self, chains: Any) -> Array:
        """Values of the chains, (R,), as (M, C)."""
        return np.ascontiguousarray(chains.reshape(self.n_draws, len(self.x)).T)


def _log_likelihood(chains: dict[str, Any]) -> Array:
    """``log p(x|z) = log p(x, z) - log p(z)``, float64."""
    return np.asarray(chains["log_density"] - log_prior(chains["z"]))
