"""Training a model: from fresh parameters, on from where it stopped, or once over some rows.

`fastvae.VAE` describes the three, their exceptions, and what they leave behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastvae import backends, settings
from fastvae.callbacks import Callback, Checkpoint, EpochMetrics, Progress
from fastvae.checkpoint import list_checkpoints
from fastvae.data import Dataset
from fastvae.errors import CheckpointError
from fastvae.evaluation import PASSING_DRAWS
from fastvae.evaluation.result import with_hashes_kept
from fastvae.kernels.places import place_of
from fastvae.model import Model
from fastvae.model_data import fitted_dataset, training_set
from fastvae.model_file import checkpoint_folder, read_model
from fastvae.model_plans import training_plan
from fastvae.network import initialise
from fastvae.training.algorithm import algorithm_class
from fastvae.training.composed import Composed
from fastvae.training.loop import run_epochs, run_pass
from fastvae.training.start import begin
from fastvae.training.state import fingerprint

__all__ = ["fit", "partial_fit", "resume", "take_up"]


def fit(model: Model, X: Any, *, eval_set: Any = None) -> None:
    """Train from fresh parameters for `n_epochs` epochs."""
    settings.check(model)
    dataset = training_set(model, X)
    with _kept_on_error(model):
        _start(model, dataset)
        model._name_features(X, reset=True)
        model.fingerprint_ = fingerprint(dataset)
        model.n_samples_seen_ = dataset.n_rows
        algorithm, callbacks = _algorithm(model, dataset), _callbacks(model, eval_set)
    _run_epochs(model, algorithm, callbacks)


def resume(model: Model, X: Any, *, eval_set: Any = None) -> None:
    """Go on with a `fit` that was interrupted, or loaded, or whose `n_epochs` was raised."""
    settings.check_fitted(model)
    settings.check(model)
    with _kept_on_error(model):
        algorithm, callbacks = _resumed(model, X, eval_set)
    _run_epochs(model, algorithm, callbacks)


def _resumed(model: Model, X: Any, eval_set: Any) -> tuple[Composed[Any], list[Callback]]:
    """Return what a run goes on with, once the data and the parameters are those that it began with."""
    settings.check_unchanged(model)
    if model.fingerprint_ is None and model.n_steps_:
        raise CheckpointError("partial_fit has no epochs to resume; call partial_fit with the next rows")
    is_imported = model.fingerprint_ is None  # parameters from elsewhere: whatever these data are, they are its own
    settings.check_batch_size(model)
    dataset = fitted_dataset(model, X) if is_imported else training_set(model, X)
    model._name_features(X, reset=False)
    found = fingerprint(dataset)
    for name, expected in (model.fingerprint_ or {}).items():
        if found[name] != expected:
            raise CheckpointError(
                f"these are not the data of the run: {name} is {found[name]}, was {expected}; "
                "resume with the same data or start another run"
            )
    if is_imported:
        image_shape = dataset.image_shape or model.image_shape_
        _set_data(model, dataset)
        model.image_shape_, model.fingerprint_ = image_shape, found
        model.n_samples_seen_ = dataset.n_rows
    return _algorithm(model, dataset), _callbacks(model, eval_set)


def take_up(
    model: Model,
    X: Any,
    path: str | os.PathLike[str],
    *,
    eval_set: Any = None,
    on_damaged: Callable[[Path, CheckpointError], None],
) -> bool:
    """Go on with the run of a checkpoint or folder; return whether there is one."""
    settings.check(model)
    path = Path(path)
    if not path.exists() or (path.is_dir() and not list_checkpoints(checkpoint_folder(path))):
        return False
    with _kept_on_error(model):
        newest, _, found = read_model(path, on_damaged, Model)
        seed = model.random_state
        if isinstance(seed, int | np.integer) and seed != found.seed_:
            raise CheckpointError(
                f"the run of {newest} began with random_state {found.seed_}, not {seed}; set it back or fit anew"
            )
        vars(model).pop("feature_names_in_", None)  # of an earlier fit, where the run's data have no names
        vars(model).update({name: value for name, value in vars(found).items() if name.endswith("_")})
        algorithm, callbacks = _resumed(model, X, eval_set)
    _run_epochs(model, algorithm, callbacks)
    return True


def partial_fit(model: Model, X: Any) -> None:
    """Train once on the rows of X in the order given, from where training stands or from fresh parameters."""
    settings.check(model)
    if model.algorithm == "mcem":
        raise ValueError(
            "algorithm='mcem' keeps a Markov chain for every row of its data, so it needs fit, not partial_fit"
        )
    with _kept_on_error(model):
        if settings.is_fitted(model):
            settings.check_unchanged(model)
            dataset = fitted_dataset(model, X)
        else:
            dataset = training_set(model, X)
            _start(model, dataset)
            model._name_features(X, reset=True)
            model.n_samples_seen_ = 0
        model.fingerprint_ = None
        model.n_samples_seen_ += dataset.n_rows
        algorithm, callbacks = _algorithm(model, dataset), _callbacks(model, None)
    run_pass(model, algorithm, n_rows=dataset.n_rows, batch_size=int(model.batch_size), callbacks=callbacks)


@contextmanager
def _kept_on_error(model: Model) -> Iterator[None]:
    """Set all attributes back when the block fails; it may replace them, but not change what they hold."""
    before = vars(model).copy()
    try:
        yield
    except BaseException:
        model.__dict__ = before
        raise


def _start(model: Model, dataset: Dataset) -> None:
    """Set the fitted attributes to those of step 0."""
    network = settings.network(model, dataset.data_dim)
    optimizer = settings.optimizer(model)
    settings.check_memory(model, network, optimizer, dataset.n_rows)
    model.seed_ = settings.seed(model.random_state)
    params = initialise(network, seed=model.seed_, init=model.init)
    begin(model, network, params, n_rows=dataset.n_rows)
    _set_data(model, dataset)


def _set_data(model: Model, dataset: Dataset) -> None:
    """Set how the model sees data to how these are seen."""
    model.scale_ = dataset.scale
    model.integer_data_ = dataset.is_integer
    model.image_shape_ = dataset.image_shape


def _algorithm(model: Model, dataset: Dataset) -> Composed[Any]:
    model.optimizer_, plan = settings.optimizer(model), training_plan(model)
    dataset = replace(dataset, rows=place_of(plan).placed(dataset.rows))
    return algorithm_class(model.algorithm, model.estimator)(
        backends.load(model.backend),
        plan,
        model.optimizer_,
        dataset,
        binarize=model.binarize,
        seed=model.seed_,
        kl_weight=float(model.kl_weight),
        kl_warmup=int(model.kl_warmup),
        decay=1 / model.n_samples_seen_ if model.prior or model.algorithm == "full-vb" else 0.0,
    )


def _callbacks(model: Model, eval_set: Any) -> list[Callback]:
    callbacks: list[Callback] = []
    if eval_set is not None:
        settings.check_has_bound(model)
        held_out = with_hashes_kept(fitted_dataset(model, eval_set))

        def measure(model: Model) -> dict[str, Any]:
            bound = model.evaluate(held_out, n_draws=PASSING_DRAWS).summary()
            columns = {"elbo_test": "elbo", "log_px_test": "log_px_z", "kl_test": "kl"}
            measured = {column: bound[name] for column, name in columns.items()}
            # Of four digits: the history goes into every checkpoint.
            kl = [float(f"{nats:.4g}") for nats in bound["kl_per_dimension"]]
            return measured | {"active_units": bound["active_units"], "kl_per_dimension": kl}

        callbacks.append(EpochMetrics(measure))
    if model.verbose:
        callbacks.append(Progress())
    # Those that save come last, so that what they save has what the others remember of an epoch.
    return callbacks + sorted(model.callbacks or (), key=lambda callback: isinstance(callback, Checkpoint))


def _run_epochs(model: Model, algorithm: Composed[Any], callbacks: list[Callback]) -> None:
    run_epochs(
        model,
        algorithm,
        n_rows=algorithm.dataset.n_rows,
        batch_size=settings.minibatch_rows(model),
        n_epochs=int(model.n_epochs),
        callbacks=callbacks,
    )
