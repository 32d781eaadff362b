"""Counter-based randomness: Philox4x32-10 streams and the minibatch order.

A stream is a pure function of (seed, stream, step, element), so every backend draws the same numbers, in any order and
on any number of threads. Word ``i`` of a stream is word ``i % 4`` of the block with key = seed (low, high word) and
counter = (i // 4, step low, step high, stream).

The words are exact everywhere. `normal` makes its numbers from NumPy's float64 logarithm, sine and cosine, so they are
identical to the last bit for one build of NumPy on one kind of processor, and may differ in it between two.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastvae import backends

__all__ = ["Stream", "epoch_order", "normal", "philox", "uniform", "words"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


class Stream(IntEnum):
    """Fourth counter word: what the numbers are for."""

    LATENT = 0  # eps of training, step = training step, element = (l * M + m) * J + j
    BINARIZE = 1  # pixels of a minibatch, step = training step, element = m * D + d
    BINARIZE_FIXED = 2  # pixels of a dataset, step = row number, element = d
    INIT = 3  # step = layer
    ORDER = 4  # step = epoch
    EVALUATION = 5  # pool of eps that evaluation picks from by a row's content, element = draw * J + j
    SAMPLE = 6  # z of generated rows
    DREAM_LATENT = 7  # z of dreams, as LATENT
    DREAM = 8  # x of dreams given z, step = training step, element = r * D + d
    MOMENTUM = 9  # momenta of HMC, step = transition, element = r * J + j
    ACCEPT = 10  # two uniforms per row of HMC: for acceptance and for the step size, step = transition, element = 2 r
    PARAMETERS = 11  # draw of theta of full variational Bayes, step = training step, element = place within theta
    IMPORTANCE = 12  # pool of eps of importance sampling, as EVALUATION
    AIS = 13  # initial z of the Markov chains of evaluation
    # Chains of missing values, of all rows the same: iteration i draws z at step 3 i, element = chain * J + j, the
    # uniform of its test at 3 i + 1, element = chain, and x at 3 i + 2, element = chain * D + d.
    IMPUTE = 14
    CORRUPT = 15  # noise that corrupts rows to be denoised, step = row // 64, element = row % 64 * D + d


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the Philox4x32-10 block of each counter.

    Parameters
    ----------
    counter : ndarray of shape (n, 4), uint32
    key : ndarray of shape (2,), uint32

    Returns
    -------
    ndarray of shape (n, 4), uint32
    """
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c2 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(count: int, *, seed: int, step: int | NDArray[Any], stream: int) -> NDArray[np.uint32]:
    """Return the first words of a stream; those of several steps along further axes in front.

    Parameters
    ----------
    count : int
        At most 2^34.
    seed, stream : int
    step : int, or ndarray of integers in [0, 2^64)

    Returns
    -------
    ndarray of shape (*step.shape, count), uint32

    Raises
    ------
    ValueError
        A stream does not hold as many.
    """
    if not 0 <= count <= 2**34:
        raise ValueError(f"a stream holds at most 2^34 words per step, asked for {count}")
    steps = np.asarray(step, np.uint64)[..., np.newaxis]
    counter = np.empty((*steps.shape[:-1], -(-count // 4), 4), np.uint32)
    counter[..., 0] = np.arange(counter.shape[-2], dtype=np.uint64)
    counter[..., 1], counter[..., 2], counter[..., 3] = steps & _LOW, steps >> _SHIFT, stream
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    return philox(counter.reshape(-1, 4), key).reshape(*counter.shape[:-2], 4 * counter.shape[-2])[..., :count]


def uniform(*, seed: int, step: int | NDArray[Any], stream: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw from the open interval (0, 1): ``((word >> 8) + 1/2) / 2^24``.

    Parameters
    ----------
    seed, step, stream, shape
        As for `normal`.

    Returns
    -------
    ndarray of shape (*step.shape, *shape)
    """
    integers = (words(prod(shape), seed=seed, step=step, stream=stream) >> 8).astype(np.float64)
    return (integers.reshape(*integers.shape[:-1], *shape) + 0.5) * 2.0**-24


def normal(
    *, seed: int, step: int | NDArray[Any], stream: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Draw standard normals by Box-Muller: words (0, 1) and (2, 3) of a block give two each.

    ``r = sqrt(-2 log u0)``, then ``r cos(2 pi u1)`` and ``r sin(2 pi u1)``, evaluated in float64 and rounded once.

    Parameters
    ----------
    seed, stream : int
    step : int, or ndarray of integers in [0, 2^64)
        Of an array every entry gives numbers of the given shape; its axes stand in front of theirs.
    shape : tuple of int
    dtype : dtype

    Returns
    -------
    ndarray of shape (*step.shape, *shape)
    """
    count = prod(shape)
    u = uniform(seed=seed, step=step, stream=stream, shape=(-(-count // 2), 2))
    radius, angle = np.sqrt(-2 * np.log(u[..., 0])), 2 * np.pi * u[..., 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    steps = pairs.shape[:-2]
    return pairs.reshape(*steps, pairs.shape[-2] * 2)[..., :count].reshape(*steps, *shape).astype(dtype)


def epoch_order(n_rows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch: a stable sort of 64-bit random keys.

    The C++ engine works it out where it can be used, in less than a tenth of NumPy's time; the order is the same.

    Parameters
    ----------
    n_rows : int
        At most 2^33.
    seed, epoch : int
        They key the permutation; in [0, 2^64).

    Returns
    -------
    ndarray of shape (n_rows,), int64
    """
    if backends.unavailable("cpp") is None:
        from fastvae import _native

        order = np.empty(n_rows, np.int64)
        _native.epoch_order(seed=seed, epoch=epoch, out=order)
        return order
    keys = words(2 * n_rows, seed=seed, step=epoch, stream=Stream.ORDER).view(np.uint64)
    return np.argsort(keys, kind="stable")
