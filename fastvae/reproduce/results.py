"""Our curves beside the paper's: scores, a table of all points, and the plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvae.files import make_folder, replace_file
from fastvae.reproduce.paper import Experiment, interpolate, paper_curve
from fastvae.reproduce.plots import curves_figure, save
from fastvae.reproduce.run import choices, read_curves

__all__ = ["scores", "write"]

SCORED_SAMPLES = (10**6, 5 * 10**6, 10**7, 10**8)
SPLITS = ("train", "test")


def scores(figure: str, experiments: Sequence[Experiment], folder: Path) -> list[dict[str, Any]]:
    """Compare our curves with the paper's where both have a value.

    Parameters
    ----------
    figure : str
        One of `fastvae.reproduce.paper.FIGURES`.
    experiments : sequence of Experiment
        Run in subfolders of `folder`.
    folder : Path

    Returns
    -------
    list of dict
        Per experiment, split and number of samples: ``ours``, ``paper`` and ``difference`` (ours - paper; positive is
        better), in nats per datapoint, each None where it is not known. JSON-serialisable.
    """
    rows = []
    for e in experiments:
        ours = read_curves(folder / e.name)
        for split in SPLITS:
            theirs = paper_curve(figure, e, split)
            for samples in sorted({*SCORED_SAMPLES, e.n_samples}):
                our, their = interpolate(ours[split], samples), interpolate(theirs, samples)
                if our is None:
                    continue
                rows.append(
                    {
                        "dataset": e.dataset,
                        "n_train": e.n_train,
                        "algorithm": e.algorithm,
                        "latent_dim": e.latent_dim,
                        "split": split,
                        "samples": samples,
                        "ours": our,
                        "paper": their,
                        "difference": None if their is None else our - their,
                    }
                )
    return rows


def write(figure: str, experiments: Sequence[Experiment], out: Path) -> dict[str, Any]:
    """Write a figure's .json, .csv, .png and .svg, of the experiments in ``out/runs``.

    Returns
    -------
    dict
        What the .json holds: ``figure``, ``step_sizes`` by experiment, and ``scores``.
    """
    make_folder(out)
    folder = out / "runs"
    values = {
        "figure": figure,
        "choices": {e.name: choices(e, folder / e.name) for e in experiments},
        "scores": scores(figure, experiments, folder),
    }
    _write_text(out / f"{figure}.json", json.dumps(values, indent=1) + "\n")
    _write_text(out / f"{figure}.csv", _points(experiments, folder))
    save(curves_figure(figure, experiments, folder), out / figure)
    return values


def _points(experiments: Sequence[Experiment], folder: Path) -> str:
    """Return all points in the columns of the paper's own table."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["dataset", "latent_dim", "n_train", "algorithm", "split", "samples_seen", "nats_per_datapoint"])
    for e in experiments:
        for split, curve in read_curves(folder / e.name).items():
            for samples, value in curve:
                table.writerow([e.dataset, e.latent_dim, e.n_train, e.algorithm, split, int(samples), f"{value:.3f}"])
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as stream:
        stream.write(text.encode())
