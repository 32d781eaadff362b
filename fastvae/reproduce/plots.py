"""The figures of the paper with ours on top; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvae.files import replace_file
from fastvae.reproduce.paper import FIGURES, Experiment, paper_curve
from fastvae.reproduce.run import read_curves

__all__ = ["curves_figure", "save"]

_COLOURS = {"aevb": "#d1495b", "wake-sleep": "#2e7d6b", "mcem": "#3d5a98"}
_NAMES = {"aevb": "AEVB", "wake-sleep": "wake-sleep", "mcem": "Monte Carlo EM"}
_LINES = {"train": "-", "test": "--"}
_TITLES = {"mnist": "MNIST", "freyface": "Frey Face"}
_AXES = {"bound": "bound (nats)", "marginal likelihood": "marginal log-likelihood (nats)"}
# The paper's own limits of the vertical axis, by what is measured and dataset; else those of the curves.
_LIMITS = {("bound", "mnist"): (-155.0, -95.0), ("marginal likelihood", "mnist"): (-160.0, -100.0)}


def curves_figure(figure: str, experiments: Sequence[Experiment], folder: Path) -> Any:
    """Draw ours over the paper's: a row per dataset, a panel per number of latents and training rows.

    Parameters
    ----------
    figure : str
    experiments : sequence of Experiment
    folder : Path
        With a subfolder of each.

    Returns
    -------
    matplotlib Figure
    """
    import matplotlib.pyplot as plt

    datasets = list(dict.fromkeys(e.dataset for e in experiments))
    panels = {name: sorted({(e.n_train, e.latent_dim) for e in experiments if e.dataset == name}) for name in datasets}
    columns = max(map(len, panels.values()))
    picture, axes = plt.subplots(
        len(datasets),
        columns,
        figsize=(2.9 * columns + 0.6, 2.6 * len(datasets) + 0.7),
        squeeze=False,
        layout="constrained",
    )
    for line, dataset in zip(axes, datasets, strict=True):
        for ax in line[len(panels[dataset]) :]:
            ax.set_visible(False)
        for ax, (n_train, latent_dim) in zip(line, panels[dataset], strict=False):
            shown = [e for e in experiments if (e.dataset, e.n_train, e.latent_dim) == (dataset, n_train, latent_dim)]
            for e in shown:
                _draw(ax, figure, e, folder)
            rows = f", N = {n_train:,}" if len({n for n, _ in panels[dataset]}) > 1 else ""
            ax.set_title(f"{_TITLES[dataset]}, $N_z$ = {latent_dim}{rows}", fontsize=9)
            ax.set_xscale("log")
            measure = FIGURES[figure].measure
            if (measure, dataset) in _LIMITS:
                ax.set_ylim(*_LIMITS[measure, dataset])
            ax.grid(alpha=0.25, linewidth=0.5)
            ax.tick_params(labelsize=8)
        line[0].set_ylabel(_AXES[FIGURES[figure].measure], fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("training samples", fontsize=9)
    handles = _legend(experiments)
    picture.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * columns), fontsize=8, frameon=False
    )
    return picture


def _draw(ax: Any, figure: str, experiment: Experiment, folder: Path) -> None:
    colour = _COLOURS[experiment.algorithm]
    for split, ours in read_curves(folder / experiment.name).items():
        theirs = paper_curve(figure, experiment, split)
        if theirs:
            ax.plot(*zip(*theirs, strict=True), _LINES[split], color=colour, alpha=0.3, linewidth=3.5)
        if ours:
            ax.plot(*zip(*ours, strict=True), _LINES[split], color=colour, linewidth=1.2)


def _legend(experiments: Sequence[Experiment]) -> list[Any]:
    from matplotlib.lines import Line2D

    names = dict.fromkeys(e.algorithm for e in experiments)
    return [
        *(Line2D([], [], color=_COLOURS[name], label=_NAMES[name]) for name in names),
        *(Line2D([], [], color="0.3", linestyle=_LINES[split], label=split) for split in _LINES),
        Line2D([], [], color="0.3", alpha=0.3, linewidth=3.5, label="the paper's (broad)"),
        Line2D([], [], color="0.3", linewidth=1.2, label="ours (thin)"),
    ]


def save(picture: Any, path: Path) -> None:
    """Write a figure as `path` with .png and .svg, and close it."""
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "fastvae", "svg.fonttype": "none"}
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with plt.rc_context(style), replace_file(path.with_suffix(suffix)) as stream:
            picture.savefig(stream, format=suffix[1:], dpi=150, metadata=metadata)
    plt.close(picture)
