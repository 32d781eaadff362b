"""Figures 4 and 5: what trained models draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastvae.kernels import Array
from fastvae.model import Model
from fastvae.model_file import read_model
from fastvae.report import grid, write_png
from fastvae.reproduce.paper import Experiment
from fastvae.reproduce.run import report_damaged

__all__ = ["write_manifolds", "write_samples"]

# Images on a side, as in the paper.
MANIFOLD_SIDE = {"mnist": 20, "freyface": 10}
SAMPLES_SIDE = 10


def write_manifolds(experiments: Sequence[Experiment], out: Path) -> list[Path]:
    """Write figure 4 of each experiment with two latents, ``fig4-DATASET.png``; return the paths."""
    paths = []
    for e in experiments:
        side = MANIFOLD_SIDE[e.dataset]
        model = _model(out, e)
        paths.append(out / f"fig4-{e.dataset}.png")
        write_png(paths[-1], grid(model.manifold(side), _shape(model), columns=side))
    return paths


def write_samples(experiments: Sequence[Experiment], out: Path) -> list[Path]:
    """Write figure 5: means of p(x|z) for draws of z, the models side by side in rising latent dimensions."""
    models = [_model(out, e) for e in sorted(experiments, key=lambda e: e.latent_dim)]
    pictures: list[Array] = []
    for model in models:
        picture = grid(model.sample(SAMPLES_SIDE**2), _shape(model), columns=SAMPLES_SIDE)
        pictures += [picture, np.ones((len(picture), 24), picture.dtype)]
    path = out / "fig5.png"
    write_png(path, np.hstack(pictures[:-1]))
    return [path]


def _model(out: Path, experiment: Experiment) -> Model:
    return read_model(out / "runs" / experiment.name / "checkpoints", report_damaged, Model)[2]


def _shape(model: Model) -> tuple[int, int]:
    assert model.image_shape_ is not None  # of both datasets
    return model.image_shape_
