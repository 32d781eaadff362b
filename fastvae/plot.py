"""The figures of a report in matplotlib, which is imported when one is drawn (``pip install 'fastvae[plot]'``).

Each takes a fitted model and the Axes to draw on, by default those of a new figure, and returns the Axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae import settings
from fastvae.arguments import check_image_shape, integer
from fastvae.kernels import Array
from fastvae.model import Model
from fastvae.model_data import fitted_dataset
from fastvae.optional import require
from fastvae.report import comparison_grid, grid
from fastvae.report.subject import as_labels, shown_dimensions

__all__ = ["history", "kl_per_dimension", "latent_scatter", "manifold", "reconstructions", "samples"]

_LABELS = {
    "elbo": "bound, nats per datapoint",
    "log_px": "log p(x|z), nats per datapoint",
    "kl": "KL divergence, nats per datapoint",
    "kl_per_dimension": "KL divergence of each latent dimension, nats per datapoint",
    "samples_per_second": "samples/s",
}


def history(model: Model, column: str = "elbo", *, ax: Any = None) -> Any:
    """Draw a column of the history over the epochs, of test rows beside it where it is known.

    Parameters
    ----------
    model : Model
    column : str
        One of ``model.history_``, without ``_test``.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    NotFittedError
        The model is not fitted.
    ValueError
        The history has no such column, or no epoch is complete.
    """
    settings.check_fitted(model)
    known = model.history_
    if not known:
        raise ValueError("the model has no history to draw: no epoch of it is complete")
    if column not in known:
        raise ValueError(f"column must be one of {', '.join(known)}, got {column!r}")
    ax = _axes(ax)
    for name, label in ((column, "train"), (f"{column}_test", "test")):
        if name in known:
            gap = next((np.full(len(value), np.nan) for value in known[name] if isinstance(value, list)), np.nan)
            values = [gap if value is None else value for value in known[name]]
            ax.plot(known["epoch"], values, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel(_LABELS.get(column, column.replace("_", " ")))
    if f"{column}_test" in known:
        ax.legend()
    return ax


def kl_per_dimension(model: Model, X: Any, *, ax: Any = None) -> Any:
    """Draw the mean KL divergence of every latent dimension over some rows, the largest first.

    Parameters
    ----------
    model : Model
    X : array of shape (N, D), or Dataset
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    NotFittedError, DataError, ValueError
        See `Model.evaluate`.
    """
    kl = model.evaluate(X).kl_per_dimension
    order = np.argsort(-kl, kind="stable")
    ax = _axes(ax)
    ax.bar(range(len(kl)), kl[order])
    if len(kl) <= 30:
        ax.set_xticks(range(len(kl)), [f"$z_{{{j}}}$" for j in order])
    ax.set_xlabel("latent dimension")
    ax.set_ylabel("KL divergence, nats per datapoint")
    return ax


def reconstructions(
    model: Model, X: Any, *, n: int = 30, image_shape: tuple[int, int] | None = None, ax: Any = None
) -> Any:
    """Draw the first images of some rows, each line above the same one as the model reconstructs it.

    Parameters
    ----------
    model : Model
    X : array of shape (N, D), or Dataset
    n : int
        How many.
    image_shape : tuple of int, optional
        (height, width); by default as the training data said.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        The rows are no images, or the model has no q(z|x).
    NotFittedError, DataError
        See `Model.reconstruct`.
    """
    shape = _image_shape(model, image_shape)
    rows = fitted_dataset(model, X)
    rows = rows.select(slice(min(integer("n", n, low=1), rows.n_rows)))
    return _image(comparison_grid([rows.as_seen(), model.reconstruct(rows)], shape, ground=np.nan), ax)


def samples(
    model: Model,
    n: int = 100,
    *,
    random_state: int | None = None,
    image_shape: tuple[int, int] | None = None,
    ax: Any = None,
) -> Any:
    """Draw means of p(x|z) for z drawn from the prior, as images.

    Parameters
    ----------
    model : Model
    n : int
    random_state : int, optional
        See `Model.sample`.
    image_shape : tuple of int, optional
        (height, width); by default as the training data said.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    NotFittedError
        The model is not fitted.
    ValueError
        The rows are no images.
    """
    shape = _image_shape(model, image_shape)
    return _image(grid(model.sample(n, random_state=random_state), shape, ground=np.nan), ax)


def manifold(model: Model, n: int = 20, *, image_shape: tuple[int, int] | None = None, ax: Any = None) -> Any:
    """Draw what lies all over a two-dimensional latent space, see `Model.manifold`.

    Parameters
    ----------
    model : Model
    n : int
        Places per side.
    image_shape : tuple of int, optional
        (height, width); by default as the training data said.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    NotFittedError
        The model is not fitted.
    ValueError
        It has not two latent dimensions, or the rows are no images.
    """
    shape = _image_shape(model, image_shape)
    return _image(grid(model.manifold(n), shape, columns=n, ground=np.nan), ax)


def latent_scatter(
    model: Model, X: Any, y: Any = None, *, dimensions: tuple[int, int] | None = None, ax: Any = None
) -> Any:
    """Draw the posterior means of some rows in two latent dimensions.

    Parameters
    ----------
    model : Model
    X : array of shape (N, D), or Dataset
    y : array of shape (N,), optional
        Labels, for the colours.
    dimensions : tuple of int, optional
        Those to be shown, counted from 0; by default the two of the largest KL divergence.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    NotFittedError, DataError
        See `Model.transform`.
    ValueError
        The model has one latent dimension, there is no such dimension, or `y` has another length than `X`.
    """
    codes = model.transform(X)
    latent_dim = codes.shape[1]
    if latent_dim < 2:
        raise ValueError("a scatter is drawn of 2 latent dimensions, this model has 1")
    labels = None if y is None else as_labels(y, len(codes))
    if dimensions is None:
        dimensions = shown_dimensions(codes, _kl(model, X) if latent_dim > 2 else None)
    first, second = (integer("dimensions", each, low=0, high=latent_dim - 1) for each in dimensions)
    ax = _axes(ax)
    kinds: list[Any] = [None] if labels is None else np.unique(labels).tolist()
    for kind in kinds:
        chosen: Array = codes if labels is None else codes[labels == kind]
        ax.scatter(chosen[:, first], chosen[:, second], s=6, alpha=0.7, linewidths=0, label=kind)
    if labels is not None and len(kinds) <= 30:
        ax.legend(markerscale=2, fontsize="small")
    ax.set_xlabel(f"$z_{{{first}}}$")
    ax.set_ylabel(f"$z_{{{second}}}$")
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def _kl(model: Model, X: Any) -> Array | None:
    return model.evaluate(X).kl_per_dimension if settings.has_bound(model) else None


def _axes(ax: Any) -> Any:
    """Return the Axes to draw on."""
    plt = require("matplotlib.pyplot", extra="plot", for_what="a plot")
    return plt.figure(layout="constrained").add_subplot() if ax is None else ax


def _image_shape(model: Model, given: tuple[int, int] | None) -> tuple[int, int]:
    settings.check_fitted(model)
    if given is not None:
        return check_image_shape(given, model.n_features_in_)
    if model.image_shape_ is None:
        raise ValueError(
            f"no image_shape is known for rows of {model.n_features_in_} columns; name (height, width) with "
            "image_shape if they are images"
        )
    return model.image_shape_


def _image(picture: Array, ax: Any) -> Any:
    ax = _axes(ax)
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax
