"""Data on their way into a model: wrapped, and checked against its parameters or what it was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.data import Dataset, as_dataset, check_values
from fastvae.settings import check_fitted

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["fitted_dataset", "is_integer", "model_dataset", "training_set"]


def model_dataset(model: Model, X: Any, scale: float | None) -> Dataset:
    """Wrap an array, and check that the model's likelihood can explain its values.

    Raises
    ------
    DataError
        See `fastvae.data.as_dataset` and `check_values`.
    """
    dataset = X if isinstance(X, Dataset) else as_dataset(X, scale=scale)
    check_values(dataset, model.likelihood, model.mean)
    return dataset


def training_set(model: Model, X: Any) -> Dataset:
    """Wrap data for training by epochs.

    Raises
    ------
    DataError
        As in `model_dataset`.
    ValueError
        There are fewer rows than a minibatch takes.
    """
    dataset = model_dataset(model, X, model.scale)
    if dataset.n_rows < model.batch_size:
        raise ValueError(
            f"n_samples={dataset.n_rows} is less than batch_size={model.batch_size}; "
            f"set batch_size to {dataset.n_rows} or less"
        )
    return dataset


def fitted_dataset(model: Model, X: Any) -> Dataset:
    """Wrap data for a fitted model, whose factor applies to data of the kind that it was trained on.

    Raises
    ------
    NotFittedError
        It is not fitted.
    DataError
        As in `model_dataset`.
    ValueError
        The rows have another width than those of training.
    """
    check_fitted(model)
    _check_width(model, X)  # also before the checks of memory order and values, whose mends would not help
    dataset = model_dataset(model, X, model.scale_ if is_integer(X) == model.integer_data_ else None)
    _check_width(model, dataset.rows)
    return dataset


def _check_width(model: Model, X: Any) -> None:
    shape: tuple[int, ...] = getattr(X.rows if isinstance(X, Dataset) else X, "shape", ())
    if len(shape) == 2 and shape[1] not in (0, model.n_features_in_):
        raise ValueError(
            f"X has {shape[1]} features, but {type(model).__name__} is expecting {model.n_features_in_} "
            "features as input"
        )


def is_integer(data: Any) -> bool:
    """Return whether data are stored as grey levels or bits rather than as floats."""
    rows = data.rows if isinstance(data, Dataset) else data
    return getattr(rows, "dtype", None) in (np.uint8, np.bool_)
