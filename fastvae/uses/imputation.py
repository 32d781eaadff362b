"""Inpainting: missing values by alternating the recognition model and the generative model.

With the observed values held, z ~ q(z|x) and x_missing ~ p(x|z) by turns make the filled-in row a draw from the
model's p(x_missing | x_observed) where q is the exact posterior (Rezende, Mohamed and Wierstra 2014, "Stochastic
backpropagation", on missing data; section 2.1 of the paper names inpainting). Where it is not, that z is a proposal
for a Metropolis test, which makes the chain exact again (Mattei and Frellsen 2018, "Leveraging the exact likelihood of
deep latent variable models"). Encoders answer anything to rows unlike those they were trained on: without the test one
in seven of MNIST's lower halves had turned white after 100 iterations. The burn-in goes without it, since from a poor
start nearly all proposals would fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import settings
from fastvae.arguments import choice, integer
from fastvae.data import Dataset, check_values
from fastvae.errors import DataError
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.model_data import wrapped
from fastvae.model_plans import inference_plan
from fastvae.uses.chains import FILLS, Chains

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Imputed", "impute"]


@dataclass(frozen=True)
class Imputed:
    """Rows whose missing values were filled in, and how.

    Attributes
    ----------
    rows : ndarray of shape (N, D)
        As the model sees data: observed values as they are; of missing ones the mean of p(x|z) over the iterations
        after the burn-in of all chains, an estimate of E[x_missing | x_observed].
    standard_error : ndarray of shape (N, D), or None
        Of that estimate, from the spread of the chains, 0 for observed values; None of a single chain.
    draws : ndarray of shape (n_chains, N, D), or None
        What each chain ended with: draws of x_missing beside the observed values, with ``fill="mean"`` its means.
    acceptance : float
        Share of the proposed z that were accepted after the burn-in. Where it is small, more iterations are needed.
    n_iterations, n_burn_in, n_chains : int
    fill : str
    seed : int
        Key of the noise.
    """

    rows: Array
    standard_error: Array | None
    draws: Array | None
    acceptance: float
    n_iterations: int
    n_burn_in: int
    n_chains: int
    fill: str
    seed: int


def impute(
    model: Model,
    X: Any,
    mask: Any,
    *,
    n_iterations: int = 100,
    n_burn_in: int = 10,
    n_chains: int = 1,
    fill: str = "sample",
    return_draws: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> Imputed:
    """Fill in missing values (inpainting, section 2.1; Rezende et al. 2014).

    Each chain starts from the mean of p(x|z) at z = 0 and alternates z ~ q(z|x) and x_missing ~ p(x|z). All rows take
    the same draws, so a row's result depends neither on its place nor on the rows beside it.

    Parameters
    ----------
    X : array of shape (N, D), or Dataset
        Where `mask` is set its values are ignored, and may be NaN.
    mask : array of shape (N, D) or (D,), bool
        True where a value is missing.
    n_iterations : int
        Draws of z per chain.
    n_burn_in : int
        The first of them: they are accepted untested, and left out of the result.
    n_chains : int
        Independent chains per row; two or more tell the standard error.
    fill : {"sample", "mean"}
        Go on with a draw from p(x|z), or with its mean. With that, filled-in rows look more like data where p(x|z) is
        coarse, as Bernoulli draws are beside grey levels, but the chain is no longer exact.
    return_draws : bool
        Return what each chain ended with.
    random_state : int or RandomState, optional
        By default `seed_`: the same result at every call.

    Returns
    -------
    Imputed

    Raises
    ------
    NotFittedError
        The model is not fitted.
    DataError
        The observed values do not fit the model, or `mask` is not boolean or of another shape.
    ValueError
        The rows have another width than those of training, or an argument is out of range.
    """
    settings.check_has_bound(model)
    n_iterations = integer("n_iterations", n_iterations, low=1)
    n_burn_in = integer("n_burn_in", n_burn_in, low=0, high=n_iterations - 1)
    n_chains, fill = integer("n_chains", n_chains, low=1), choice("fill", fill, FILLS)
    seed = model.seed_ if random_state is None else settings.seed(random_state)
    dataset, missing = _observed(model, X, mask)
    plan, shape, dtype = inference_plan(model), missing.shape, model.params_.dtype
    params = place_of(plan).placed(model.params_)
    rows, accepted = np.empty(shape, dtype), 0
    error = np.empty(shape, dtype) if n_chains > 1 else None
    draws = np.empty((n_chains, *shape), dtype) if return_draws else None
    for block, groups in _batches(dataset.n_rows, n_chains, plan):
        holes = missing[block]
        moments = np.zeros((2, *holes.shape))  # sums over chains of their means and of the squares of these
        for numbers in groups:
            chains = Chains(plan, params, dataset, block, holes, numbers, fill=fill, seed=seed)
            means, n_accepted = chains.run(n_iterations, n_burn_in)
            accepted += n_accepted
            moments += means.sum(0), np.square(means).sum(0)
            if draws is not None:
                draws[numbers.start : numbers.stop, block] = chains.x.reshape(means.shape)
        mean, mean_square = moments / n_chains
        rows[block] = np.where(holes, mean, chains.x[: len(holes)])
        if error is not None:
            variance = np.maximum(mean_square - mean**2, 0) / (n_chains - 1)
            error[block] = np.where(holes, np.sqrt(variance), 0)
    acceptance = accepted / ((n_iterations - n_burn_in) * n_chains * dataset.n_rows)
    return Imputed(rows, error, draws, acceptance, n_iterations, n_burn_in, n_chains, fill, seed)


def _observed(model: Model, X: Any, mask: Any) -> tuple[Dataset, Array]:
    """Return the rows with 0 for missing values, and the mask of shape (N, D)."""
    data = wrapped(model, X)
    shape, missing = data.rows.shape, np.asarray(mask)
    if missing.dtype != np.bool_ or missing.shape not in (shape, shape[1:]):
        raise DataError(
            f"mask must be boolean and of shape {shape} or {shape[1:]}, True where a value is missing; "
            f"got {missing.dtype} of shape {missing.shape}"
        )
    missing = np.broadcast_to(missing, shape)
    filled = dataclasses.replace(data, rows=np.where(missing, data.rows.dtype.type(0), data.dense()))
    check_values(filled, model.likelihood, model.mean)
    return filled, missing


def _batches(n_rows: int, n_chains: int, plan: Plan) -> Iterator[tuple[slice, list[range]]]:
    """Yield blocks of rows and groups of chains: the rows whose chains all fit the plan, or one row and many groups."""
    height, together = max(1, plan.rows // n_chains), min(n_chains, plan.rows)
    groups = [range(first, min(first + together, n_chains)) for first in range(0, n_chains, together)]
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows)), groups
