"""Self-contained pages: everything is within one HTML file, which asks the network for nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from fastvae import settings
from fastvae.arguments import check_image_shape
from fastvae.files import replace_file
from fastvae.model_data import fitted_dataset
from fastvae.report.sections import final_figures, sections
from fastvae.report.subject import Subject, as_labels

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["assemble", "write", "write_page", "write_subject"]

_FOLDER = Path(__file__).parent


def write(
    model: Model,
    path: str | os.PathLike[str],
    X: Any = None,
    y: Any = None,
    *,
    image_shape: tuple[int, int] | None = None,
    title: str | None = None,
) -> None:
    """Write what a trained model has learned into one HTML file, which needs nothing else to be read.

    Curves, figures with their standard errors, reconstructions, samples, the latent space, the configuration, and for
    up to 20 latent dimensions an explorer that decodes in the reader's browser from the decoder's weights.

    Parameters
    ----------
    path : path-like
        File to write or replace.
    X : array of shape (N, D), or Dataset, optional
        Rows that were not trained on; without them the page has no reconstructions and no bound of its own.
    y : array of shape (N,), optional
        Their labels, for the colours of the latent space.
    image_shape : tuple of int, optional
        (height, width) if the rows are images; by default as the training data said.
    title : str, optional
        Headline; by default the name of the file.

    Raises
    ------
    NotFittedError
        The model is not fitted.
    DataError
        The rows do not fit the model.
    ValueError
        `y` has another length than `X`, or `image_shape` does not fit the rows.
    OSError
        The file cannot be written.
    """
    settings.check_fitted(model)
    path = Path(path)
    dataset = None if X is None else fitted_dataset(model, X)
    labels = None if y is None else as_labels(y, 0 if dataset is None else dataset.n_rows)
    if image_shape is not None:
        image_shape = check_image_shape(image_shape, model.n_features_in_)
    subject = Subject(
        model=model,
        title=title or path.stem,
        dataset=dataset,
        split="",
        labels=labels,
        image_shape=image_shape or (None if dataset is None else dataset.image_shape),
        absent="no rows were given" if dataset is None else None,
    )
    write_subject(path, subject)


def write_subject(path: Path, subject: Subject) -> None:
    """Write the page of a subject."""
    network = subject.model.network_
    plural = "" if network.latent_dim == 1 else "s"
    under = [f"{network.latent_dim:,} latent dimension{plural}", f"{network.likelihood} likelihood"]
    under.append(subject.model.algorithm_)
    if "data" in subject.data:
        under.insert(0, Path(subject.data["data"]).name)
    write_page(path, assemble(subject.title, " · ".join(under), final_figures(subject), sections(subject)))


def assemble(
    title: str, under: str, figures: Sequence[tuple[str, str, str]], parts: Sequence[tuple[str, str, str]]
) -> str:
    """Return a page.

    Parameters
    ----------
    title, under : str
        Headline, and the line below it.
    figures : sequence of (str, str, str)
        Value, unit and explanation of what stands large at the head.
    parts : sequence of (str, str, str)
        Name, title and HTML of each section.
    """
    from fastvae import __version__

    stats = "".join(
        f"<div class=stat><dd><b>{escape(value)}</b> <span class=unit>{escape(unit)}</span></dd>"
        f"<dt>{escape(told)}</dt></div>"
        for value, unit, told in figures
    )
    return Template((_FOLDER / "page.html").read_text("utf-8")).substitute(
        title=escape(title),
        under=escape(under),
        style=(_FOLDER / "report.css").read_text("utf-8"),
        stats=f"<dl class=stats>{stats}</dl>" if stats else "",
        links="".join(f"<a href='#{name}'>{escape(text)}</a>" for name, text, _ in parts),
        sections="\n".join(
            f"<section id={name}><h2>{escape(text)}</h2>{content}</section>" for name, text, content in parts
        ),
        version=escape(__version__),
        script=(_FOLDER / "report.js").read_text("utf-8"),
        explorer=(_FOLDER / "explorer.js").read_text("utf-8")
        if any(name == "explorer" for name, _, _ in parts)
        else "",
    )


def write_page(path: Path, page: str) -> None:
    """Write a page, entirely or not at all."""
    with replace_file(path) as stream:
        stream.write(page.encode(errors="replace"))  # a path need not be text
