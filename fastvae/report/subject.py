"""What a page shows: a trained model, some rows, and how both came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import backends, settings
from fastvae.data import Dataset
from fastvae.errors import DataError, one_line
from fastvae.evaluation import Bound, draws_for
from fastvae.kernels import Array

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Subject", "as_labels", "of_run", "run_rows", "shown_dimensions"]

# Rows whose posterior means are shown, and rows that are shown beside their reconstructions.
SCATTER_ROWS, PAIR_ROWS = 2000, 30


@dataclass(kw_only=True)
class Subject:
    """A trained model and what a page can say of it.

    Attributes
    ----------
    model : Model
    title : str
        Of the page.
    dataset : Dataset or None
        Rows to reconstruct.
    split : str
        Which part of the data these are; empty where that is not known.
    labels : ndarray of shape (N,), or None
    bound : Bound or None
        Of all rows of the dataset, where model and data have one.
    image_shape : tuple of int, or None
        (height, width) if the rows are images.
    engine : mapping
        Where it was trained: backend, isa, precision, n_threads, processor.
    data : mapping
        Lines about the data, by name.
    absent : str or None
        Why there is no dataset.
    """

    model: Model
    title: str
    dataset: Dataset | None = None
    split: str = "test"
    labels: Array | None = None
    bound: Bound | None = None
    image_shape: tuple[int, int] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    absent: str | None = None

    def __post_init__(self) -> None:
        if self.image_shape is None:
            self.image_shape = self.model.image_shape_
        if not self.engine:
            engine = backends.load(self.model.backend)
            self.engine = {
                "backend": engine.NAME,
                "isa": backends.isa_level(engine),
                "precision": self.model.precision,
                "n_threads": self.model.n_threads or backends.default_threads(),
                "processor": backends.processor(),
            }
        if self.dataset is not None and self.bound is None and settings.has_bound(self.model):
            self.bound = self.model.evaluate(self.dataset, n_draws=draws_for(self.split or "test"))

    @cached_property
    def codes(self) -> Array | None:
        """Posterior means of the first rows, shape (n, J)."""
        if self.dataset is None or not settings.encodes(self.model):
            return None
        return self.model.transform(self._first(SCATTER_ROWS))

    @cached_property
    def pairs(self) -> tuple[Array, Array] | None:
        """Some rows as the model sees them, and their reconstructions, both of shape (n, D)."""
        if self.codes is None:
            return None
        rows = self._first(PAIR_ROWS)
        return rows.as_seen(), self.model.inverse_transform(self.codes[: rows.n_rows])

    def named(self, what: str) -> str:
        """Name rows, or what was measured on them, with the part of the data that they are."""
        return f"{self.split} {what}".strip()

    def _first(self, count: int) -> Dataset:
        assert self.dataset is not None
        return self.dataset.select(slice(min(count, self.dataset.n_rows)))

    @property
    def kl_per_dimension(self) -> Array | None:
        """Mean nats of each latent dimension over the rows, shape (J,)."""
        return None if self.bound is None else self.bound.kl_per_dimension


def shown_dimensions(codes: Array, kl_per_dimension: Array | None) -> tuple[int, int]:
    """Return the two latent dimensions to be shown: those of the largest KL divergence, or of the widest codes.

    Parameters
    ----------
    codes : ndarray of shape (n, J)
        J at least 2.
    kl_per_dimension : ndarray of shape (J,), or None
    """
    if codes.shape[1] == 2:
        return 0, 1
    weight = codes.var(axis=0) if kl_per_dimension is None else kl_per_dimension
    first, second = np.argsort(-weight, kind="stable")[:2].tolist()
    return first, second


def as_labels(y: Any, n_rows: int) -> Array:
    """Return one label for each row, as text where they have no order: with missing values, or of several types.

    Raises
    ------
    ValueError
        There are not as many labels as rows.
    """
    labels = np.asarray(y)
    if labels.shape != (n_rows,):
        raise ValueError(f"y must have one label for each of the {n_rows} rows of X, got shape {labels.shape}")
    try:
        kinds = np.unique(labels)
    except TypeError:
        return labels.astype(str)
    return labels if (kinds == kinds).all() else labels.astype(str)  # NaN is not itself


def of_run(folder: Path, model: Model, metadata: Mapping[str, Any], **known: Any) -> Subject:
    """Describe a run by its newest checkpoint.

    Parameters
    ----------
    folder : Path
        Its name is the title.
    model : Model
    metadata : mapping
        The checkpoint's; without its engine the one at hand is named.
    **known
        What the caller has at hand of the dataset, its split, labels, bound, or why there is none.
    """
    run = metadata.get("run") or {}
    data = {"data": run["data"]} if "data" in run else {}
    if run.get("test_fraction") is not None:
        data["test fraction"] = run["test_fraction"]
    return Subject(model=model, title=folder.resolve().name, engine=metadata.get("engine", {}), data=data, **known)


def run_rows(metadata: Mapping[str, Any], *, data_dir: Path | None = None) -> dict[str, Any]:
    """Load the rows that a run's page shows, with their labels where those are known.

    Parameters
    ----------
    metadata : mapping
        The checkpoint's.
    data_dir : Path, optional
        Where the data are now; by default where they were.

    Returns
    -------
    dict
        ``dataset``, ``split`` and ``labels``; or ``absent`` alone, which says why the data cannot be had.
    """
    from fastvae.data import load
    from fastvae.data.labels import known_labels
    from fastvae.training.state import fingerprint

    run = metadata.get("run")
    if not run:
        return {"absent": "the checkpoint does not name its data"}
    folder = run["data_dir"] if data_dir is None else data_dir
    try:
        halves = load(run["data"], data_dir=folder, test_fraction=run["test_fraction"])
        if fingerprint(halves.train) != metadata["data"]["fingerprint"]:
            return {"absent": f"the rows of {run['data']} are not those of the run"}
        split = "train" if halves.test is None else "test"
        dataset = halves.train if halves.test is None else halves.test
        return {"dataset": dataset, "split": split, "labels": known_labels(dataset, split=split, data_dir=folder)}
    except (DataError, OSError) as error:
        return {"absent": one_line(error)}
