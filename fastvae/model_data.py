"""Data on their way into a model: wrapped, and checked against its parameters or what it was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastvae import backends
from fastvae.data import Dataset, as_dataset, check_values
from fastvae.data.arrays import is_on_device
from fastvae.errors import DataError
from fastvae.settings import check_fitted

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["fitted_dataset", "training_set", "wrapped"]


def training_set(model: Model, X: Any) -> Dataset:
    """Wrap data for training from fresh parameters, and check that the likelihood can explain their values.

    Raises
    ------
    DataError
        See `fastvae.data.as_dataset` and `check_values`; or they lie on a device, and the backend does not.
    """
    dataset = _dataset(model, X, model.scale)
    check_values(dataset, model.likelihood, model.mean)
    return dataset


def fitted_dataset(model: Model, X: Any) -> Dataset:
    """Wrap data for a fitted model, and check their values.

    Raises
    ------
    NotFittedError, DataError, ValueError
        As in `wrapped` and `training_set`.
    """
    dataset = wrapped(model, X)
    check_values(dataset, model.likelihood, model.mean)
    return dataset


def wrapped(model: Model, X: Any) -> Dataset:
    """Wrap data for a fitted model, with the factor of its training data if that applies to them; whatever values.

    Raises
    ------
    NotFittedError
        It is not fitted.
    DataError
        As in `training_set`.
    ValueError
        The rows have another width than those of training, or columns of other names.
    """
    check_fitted(model)
    model._name_features(X, reset=False)
    dataset = _dataset(model, X, model.scale_)
    # A factor of floats was given, not guessed: it holds for integers too, such as a batch that has no fractions.
    of_all_kinds = not model.integer_data_ and model.scale_ != 1
    if dataset is not X and dataset.is_integer != model.integer_data_ and not of_all_kinds:
        dataset = as_dataset(dataset.rows)
    if dataset.data_dim != model.n_features_in_:
        raise ValueError(
            f"X has {dataset.data_dim} features, but {type(model).__name__} is expecting {model.n_features_in_} "
            "features as input"
        )
    return dataset


def _dataset(model: Model, X: Any, scale: float | None) -> Dataset:
    """Return a dataset as it is, an array wrapped; unless it lies where the model's backend does not read."""
    on_device = X.is_on_device if isinstance(X, Dataset) else is_on_device(X)
    if on_device and (name := backends.resolve(model.backend)) != "cuda":
        raise DataError(
            f"the data lie on a device, where the backend {name!r} does not read them: give x.get() (CuPy) or x.cpu() "
            "(torch), or set backend='cuda'"
        )
    return X if isinstance(X, Dataset) else as_dataset(X, scale=scale)
