"""Markov chains over missing values and z: the steps of `fastvae.uses.impute`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastvae.data import Dataset
from fastvae.data.arrays import on_host
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal, uniform

__all__ = ["FILLS", "Chains"]

FILLS = ("sample", "mean")


class Chains:
    """Some chains of some rows: M states, chain by chain.

    Parameters
    ----------
    plan : Plan
    params : ndarray of shape (P,)
    dataset : Dataset
    block : slice
        Its rows that are filled in; with as many chains each as there are `numbers` at most ``plan.rows`` in all.
    holes : ndarray of shape (rows of the block, D), bool
        True where a value is missing.
    numbers : range
        Which chains: each has noise of its own, of all rows the same.
    fill : {"sample", "mean"}
    seed : int
        Key of the noise.

    Attributes
    ----------
    x : ndarray of shape (M, D)
        The rows, filled in.
    z : ndarray of shape (M, J)
        What they were filled in from.
    """

    def __init__(
        self,
        plan: Plan,
        params: Array,
        dataset: Dataset,
        block: slice,
        holes: Array,
        numbers: range,
        *,
        fill: str,
        seed: int,
    ) -> None:
        self.plan, self.place, self.numbers, self.fill, self.seed = plan, place_of(plan), numbers, fill, seed
        self.params, self.network, self.n_rows = params, plan.network, len(holes)
        index = np.tile(np.arange(block.start, block.stop, dtype=np.int64), len(numbers))

        def empty(*widths: int) -> list[Array]:
            return [np.empty((len(index), width), self.params.dtype) for width in widths]

        def empty_there(*widths: int) -> list[Array]:
            return [self.place.empty(len(index), width) for width in widths]

        heads = self.network.decoder_dims[-1]
        self.x, self.mean, self.out = empty(*[self.network.data_dim] * 2, heads)
        self.z, self.proposed_z, self.mu, self.logvar = empty(*[self.network.latent_dim] * 4)
        self.encoder_hidden = tuple(empty_there(*self.network.encoder_hidden))
        self.decoder_hidden = tuple(empty_there(*self.network.decoder_hidden))
        (self.proposed_out,), self.kl = empty_there(heads), self.place.empty(len(index))
        self.x_there, self.out_there = self.x, self.out  # as they are while operations read them
        self.log_px = np.empty(len(index), self.params.dtype)
        self.holes = np.tile(holes, (len(numbers), 1))
        plan.gather(data=dataset.rows, index=index, scale=dataset.scale, binarize="none", seed=seed, step=0, x=self.x)

    def run(self, n_iterations: int, n_burn_in: int) -> tuple[Array, int]:
        """Run from z = 0.

        Returns
        -------
        means : ndarray of shape (chains, rows, D), float64
            Of p(x|z) over each chain's iterations after the burn-in.
        n_accepted : int
            Proposals accepted after the burn-in.
        """
        self.z[:] = 0
        self._decode(self.z, self.out)
        self._mean()
        np.copyto(self.x, self.mean, where=self.holes)
        total, n_accepted = np.zeros(self.x.shape), 0
        for iteration in range(n_iterations):
            self._propose(iteration)
            accepted = self._test(iteration) if iteration >= n_burn_in else np.ones(len(self.x), bool)
            self.z[accepted], self.out[accepted] = self.proposed_z[accepted], on_host(self.proposed_out)[accepted]
            self._mean()
            np.copyto(self.x, self.mean if self.fill == "mean" else self._draw(iteration), where=self.holes)
            if iteration >= n_burn_in:
                total += self.mean
                n_accepted += int(accepted.sum())
        total /= n_iterations - n_burn_in
        return total.reshape(len(self.numbers), self.n_rows, -1), n_accepted

    def _decode(self, z: Array, out: Array) -> None:
        self.plan.decoder_forward(params=self.params, z=z, hidden=self.decoder_hidden, out=out)

    def _mean(self) -> None:
        """Look at the decoder's output as it is now."""
        self.out_there = self.place.placed(self.out)
        self.plan.likelihood_mean(out=self.out_there, mean=self.mean)

    def _propose(self, iteration: int) -> None:
        """Draw z ~ q(z|x), and decode it."""
        self.x_there = self.place.placed(self.x)
        self.plan.encoder_forward(
            params=self.params, x=self.x_there, hidden=self.encoder_hidden, mu=self.mu, logvar=self.logvar
        )
        eps = self._noise(normal, 3 * iteration, self.network.latent_dim)
        self.plan.latent_forward(
            mu=self.mu, logvar=self.logvar, eps=eps[np.newaxis], z=self.proposed_z[np.newaxis], kl=self.kl
        )
        self._decode(self.proposed_z, self.proposed_out)

    def _test(self, iteration: int) -> Array:
        """Say which proposals are accepted: with probability ``min(1, w(proposed z) / w(z))``, shape (M,)."""
        log_ratio = self._log_weight(self.proposed_z, self.proposed_out) - self._log_weight(self.z, self.out_there)
        accepted: Array = np.log(self._noise(uniform, 3 * iteration + 1, 1)[:, 0]) < log_ratio
        return accepted

    def _log_weight(self, z: Array, out: Array) -> Array:
        """Return ``log p(x|z) + log p(z) - log q(z|x)`` but for a constant of each row, shape (M,), float64."""
        self.plan.likelihood(x=self.x_there, out=out, scale=1.0, log_px=self.log_px, dout=None)
        eps = (z - self.mu) * np.exp(-self.logvar / 2)
        weight: Array = self.log_px + 0.5 * (np.square(eps, dtype=np.float64) - np.square(z)).sum(1)
        return weight

    def _draw(self, iteration: int) -> Array:
        """Draw x ~ p(x|z), shape (M, D)."""
        data_dim, step = self.network.data_dim, 3 * iteration + 2
        if self.network.likelihood == "bernoulli":
            return self._noise(uniform, step, data_dim) < self.mean
        floor = self.params.dtype.type(self.network.logvar_floor)
        logvar = floor + np.logaddexp(0, self.out[:, data_dim:] - floor)
        drawn: Array = self.mean + np.exp(logvar / 2) * self._noise(normal, step, data_dim)
        return drawn

    def _noise(self, draw: Callable[..., Array], step: int, width: int) -> Array:
        """Return noise of shape (M, width)."""
        each = draw(seed=self.seed, step=step, stream=Stream.IMPUTE, shape=(self.numbers.stop, width))
        return np.repeat(each[self.numbers.start :].astype(self.params.dtype, copy=False), self.n_rows, axis=0)
