"""Argument checks shared by the engines written in Python. Each failure names the argument, its rule and what it is."""

from __future__ import annotations

from math import isfinite
from operator import index as as_integer
from typing import Any, NamedTuple

import numpy as np

from fastvae.errors import BackendError
from fastvae.kernels import BINARIZE, ESTIMATORS, STEP_ESTIMATORS, Array
from fastvae.network import Network

__all__ = ["CheckedPlan", "Flags", "check_array", "check_estimator", "check_noise"]

_DATA_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))


class Flags(NamedTuple):
    """``ndarray.flags`` of an array that is none but lies on a device: its other attributes have NumPy's names too."""

    c_contiguous: bool
    writeable: bool


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or isinstance(getattr(value, "flags", None), Flags)


def check_array(name: str, value: Any, shape: tuple[int, ...], dtype: Any, *, output: bool = False) -> None:
    """Require an array of this dtype and shape, C-contiguous, and writeable when it is an output."""
    if not _is_array(value) or value.dtype != np.dtype(dtype):
        found = value.dtype if _is_array(value) else type(value).__name__
        raise TypeError(f"{name} must be an ndarray of {np.dtype(dtype)}, got {found}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if not value.flags.c_contiguous or (output and not value.flags.writeable):
        raise ValueError(f"{name} must be C-contiguous{' and writeable' if output else ''}")


def check_noise(**keys: int) -> None:
    """Require seeds and steps to be integers in [0, 2^64)."""
    for name, value in keys.items():
        try:
            good = 0 <= as_integer(value) < 2**64
        except TypeError:
            good = False
        if not good:
            raise ValueError(f"{name} must be an integer in [0, 2^64), got {value!r}")


def check_indices(name: str, value: Array, n_rows: int) -> None:
    """Require row numbers in [0, n_rows)."""
    if value.size and not 0 <= value.min() <= value.max() < n_rows:
        raise ValueError(f"{name} must lie in [0, {n_rows}), got {value.min()} to {value.max()}")


def check_data(data: Any, data_dim: int) -> int:
    """Require a dataset as `fastvae.kernels.Plan.gather` takes it; return its number of rows."""
    csr = getattr(data, "format", None) == "csr"
    values = data.data if csr else data
    if not _is_array(values) or values.dtype not in _DATA_DTYPES:
        found = values.dtype if _is_array(values) else type(values).__name__
        raise TypeError(f"data must be an ndarray or CSR of uint8, float32 or float64, got {found}")
    if data.ndim != 2 or data.shape[0] < 1 or data.shape[1] != data_dim:
        raise ValueError(f"data must have shape (N, {data_dim}), got {data.shape}")
    if not values.flags.c_contiguous:
        raise ValueError("data must be C-contiguous")
    if csr:
        _check_csr(data)
    return int(data.shape[0])


def _check_csr(data: Any) -> None:
    indptr, indices, (n_rows, data_dim) = data.indptr, data.indices, data.shape
    for part, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype not in (np.int32, np.int64) or array.dtype != indices.dtype:
            raise TypeError(f"data.{part} must be int32 or int64, as data.indices is, got {array.dtype}")
    if indices.shape != data.data.shape or indptr.shape != (n_rows + 1,):
        raise ValueError(f"data.indices must have shape {data.data.shape} and data.indptr ({n_rows + 1},)")
    if indptr[0] < 0 or indptr[-1] > len(indices) or (np.diff(indptr) < 0).any():
        raise ValueError("data.indptr must rise from 0 to the number of stored values")
    used = indices[indptr[0] : indptr[-1]]
    if used.size and not 0 <= used.min() <= used.max() < data_dim:
        raise ValueError(f"data.indices must lie in [0, {data_dim}), got {used.min()} to {used.max()}")
    rising = np.diff(indices) > 0
    rising[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < len(indices))] - 1] = True  # between two rows
    if not rising[indptr[0] : max(indptr[-1] - 1, 0)].all():
        raise ValueError("data.indices must rise within each row: call sum_duplicates() and sort_indices() on data")


def check_constants(*, scale: float, binarize: str) -> None:
    """Require a positive finite scale and a known binarisation."""
    if binarize not in BINARIZE:
        raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {binarize!r}")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale!r}")


def check_estimator(estimator: str, among: tuple[str, ...] = ESTIMATORS) -> None:
    """Require a known one."""
    if estimator not in among:
        raise ValueError(f"estimator must be one of {', '.join(among)}, got {estimator!r}")


class CheckedPlan:
    """The attributes of a plan, and the checks of its operations' arguments.

    Raises
    ------
    BackendError
        The engine lacks the precision.
    ValueError
        A size below 1.
    """

    def __init__(
        self,
        network: Network,
        *,
        rows: int,
        draws: int,
        precision: str,
        n_threads: int,
        name: str,
        dtypes: dict[str, Any],
    ) -> None:
        if precision not in dtypes:
            raise BackendError(f"backend {name!r} has precisions {', '.join(dtypes)}, not {precision!r}")
        for size, value in (("rows", rows), ("draws", draws), ("n_threads", n_threads)):
            if value < 1:
                raise ValueError(f"{size} must be at least 1, got {value}")
        self.network = network
        self.rows, self.draws, self.precision, self.n_threads = rows, draws, precision, n_threads
        self.dtype = np.dtype(dtypes[precision])

    def _check(self, shape: tuple[int, ...], *, output: bool = False, **arrays: Array) -> None:
        for name, value in arrays.items():
            check_array(name, value, shape, self.dtype, output=output)

    def _check_params(self, params: Array, *, output: bool = False) -> None:
        self._check((self.network.layout.size,), output=output, params=params)

    def _check_rows(self, name: str, value: Any, limit: int, *, multiple_of: int = 1) -> int:
        rows = len(value) if _is_array(value) and value.ndim else 0
        if not 1 <= rows <= limit or rows % multiple_of:
            found = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"{name} must have 1 to {limit} rows, a multiple of {multiple_of}; got {found}")
        return rows

    def _check_x(self, x: Array) -> int:
        rows = self._check_rows("x", x, self.rows)
        self._check((rows, self.network.data_dim), x=x)
        return rows

    def _check_z(self, z: Array, *, multiple_of: int = 1) -> int:
        rows = self._check_rows("z", z, self.rows * self.draws, multiple_of=multiple_of)
        self._check((rows, self.network.latent_dim), z=z)
        return rows

    def _check_out(self, out: Array, *, multiple_of: int = 1) -> int:
        rows = self._check_rows("out", out, self.rows * self.draws, multiple_of=multiple_of)
        self._check((rows, self.network.decoder_dims[-1]), out=out)
        return rows

    def _check_hidden(self, hidden: Any, rows: int, widths: tuple[int, ...], *, output: bool) -> None:
        if not isinstance(hidden, tuple | list) or len(hidden) != len(widths):
            raise ValueError(f"hidden must be a tuple of {len(widths)} arrays, got {type(hidden).__name__}")
        for i, (array, width) in enumerate(zip(hidden, widths, strict=True)):
            self._check((rows, width), output=output, **{f"hidden[{i}]": array})

    def _check_latent(self, mu: Array, logvar: Array, eps: Array) -> tuple[int, int, int]:
        rows = self._check_rows("mu", mu, self.rows)
        draws = self._check_rows("eps", eps, self.draws)
        shape = (draws, rows, self.network.latent_dim)
        self._check(shape[1:], mu=mu, logvar=logvar)
        self._check(shape, eps=eps)
        return shape

    def _check_gather(
        self, *, data: Any, index: Array, scale: float, binarize: str, seed: int, step: int, x: Array
    ) -> None:
        rows = self._check_rows("index", index, self.rows)
        check_array("index", index, (rows,), np.int64)
        self._check((rows, self.network.data_dim), output=True, x=x)
        check_indices("index", index, check_data(data, self.network.data_dim))
        check_constants(scale=scale, binarize=binarize)
        check_noise(seed=seed, step=step)

    def _check_train_steps(
        self,
        *,
        params: Array,
        state: Array,
        n_slots: int,
        data: Any,
        order: Array,
        scale: float,
        binarize: str,
        seed: int,
        step: int,
        estimator: str,
        kl_weight: float,
        kl_warmup: int,
        decay: float,
        stats: Array,
        done: Array,
    ) -> None:
        check_array("done", done, (1,), np.int64, output=True)
        self._check_params(params, output=True)
        self._check((n_slots, *params.shape), output=True, state=state)
        shape = order.shape if isinstance(order, np.ndarray) else ()
        if len(shape) != 2 or not 1 <= shape[1] <= self.rows:
            raise ValueError(f"order must have shape (T, M) with M from 1 to {self.rows}, got {shape}")
        check_array("order", order, shape, np.int64)
        check_array("stats", stats, (shape[0], 2), np.float64, output=True)
        check_indices("order", order, check_data(data, self.network.data_dim))
        check_constants(scale=scale, binarize=binarize)
        check_noise(seed=seed, step=step)
        check_estimator(estimator, STEP_ESTIMATORS)
        for name, value in (("kl_weight", kl_weight), ("kl_warmup", kl_warmup), ("decay", decay)):
            if not isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        if kl_warmup < 0:
            raise ValueError(f"kl_warmup must not be negative, got {kl_warmup!r}")
        if estimator not in ESTIMATORS and (kl_weight, kl_warmup) != (1, 0):
            raise ValueError(
                f"kl_weight and kl_warmup must be 1 and 0 with estimator {estimator!r}, which has no KL divergence to "
                f"weigh, got {kl_weight!r} and {kl_warmup!r}"
            )
