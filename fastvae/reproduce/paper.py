"""What the paper reports: its curves, read off figures 2 and 3, and the protocol of its experiments (section 5)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import log
from typing import Any

from fastvae.training.mcem import N_LEAPFROG, N_UPDATES

__all__ = [
    "FIGURES",
    "SAMPLES_PER_SECOND",
    "Curve",
    "Experiment",
    "Protocol",
    "experiments",
    "interpolate",
    "paper_curve",
]

# (samples seen, nats per datapoint) in rising order of the first
Curve = tuple[tuple[float, float], ...]

# Section 5: 20 to 40 minutes per million samples.
SAMPLES_PER_SECOND = (417, 833)


@dataclass(frozen=True)
class Protocol:
    """What all experiments of a figure have in common.

    Attributes
    ----------
    measure : {"bound", "marginal likelihood", "reconstruction error"}
        What the vertical axis shows; an error is the mean square per dimension.
    n_train : dict of str to tuple of int
        Training rows by dataset; 0 for all that the dataset's split has.
    latent_dims : dict of str to tuple of int
        By dataset.
    hidden : dict of str to int
        Hidden units of encoder and decoder, by dataset.
    algorithms : tuple of str
    n_samples : int
        Training samples to go to by default.
    """

    measure: str
    n_train: dict[str, tuple[int, ...]]
    latent_dims: dict[str, tuple[int, ...]]
    hidden: dict[str, int]
    algorithms: tuple[str, ...]
    n_samples: int


FIGURES = {
    "fig2": Protocol(
        measure="bound",
        n_train={"mnist": (50000,), "freyface": (0,)},
        latent_dims={"mnist": (3, 5, 10, 20, 200), "freyface": (2, 5, 10, 20)},
        hidden={"mnist": 500, "freyface": 200},
        algorithms=("aevb", "wake-sleep"),
        n_samples=10**7,
    ),
    "fig3": Protocol(
        measure="marginal likelihood",
        n_train={"mnist": (1000, 50000)},
        latent_dims={"mnist": (3,)},
        hidden={"mnist": 100},
        algorithms=("aevb", "wake-sleep", "mcem"),
        n_samples=10**7,
    ),
    "fig4": Protocol(
        measure="bound",
        n_train={"mnist": (50000,), "freyface": (0,)},
        latent_dims={"mnist": (2,), "freyface": (2,)},
        hidden={"mnist": 500, "freyface": 200},
        algorithms=("aevb",),
        n_samples=10**7,
    ),
    "fig5": Protocol(
        measure="bound",
        n_train={"mnist": (50000,)},
        latent_dims={"mnist": (2, 5, 10, 20)},
        hidden={"mnist": 500},
        algorithms=("aevb",),
        n_samples=10**7,
    ),
    # Not in the paper: what a code of this size can do, for comparison.
    "baselines": Protocol(
        measure="reconstruction error",
        n_train={"mnist": (50000,), "freyface": (0,)},
        latent_dims={"mnist": (2, 5, 10, 20), "freyface": (2, 5, 10, 20)},
        hidden={"mnist": 500, "freyface": 200},
        algorithms=("aevb", "autoencoder"),
        n_samples=10**6,
    ),
}


@dataclass(frozen=True)
class Experiment:
    """One curve of a figure: what is trained on what, and how it is measured.

    Attributes
    ----------
    dataset, algorithm, measure : str
    latent_dim, hidden : int
        J, and the hidden units of encoder and decoder.
    n_train : int
        First rows of the training set; 0 for all.
    n_samples : int
        Training samples to go to.
    step_size : float, optional
        By default by the protocol's rule, see `fastvae.reproduce.run.choices`.
    init : {"fan_in"} or float, optional
        Initial weights, likewise.
    """

    dataset: str
    algorithm: str
    measure: str
    latent_dim: int
    hidden: int
    n_train: int
    n_samples: int
    step_size: float | None = None
    init: str | float | None = None

    @property
    def evaluations(self) -> int:
        """Training samples that a datapoint's visit counts for.

        The paper's axis is "training samples evaluated". Monte Carlo EM evaluates a datapoint at each leapfrog step and
        at each update, and only counted so is it as slow as the paper shows it.
        """
        return N_LEAPFROG + N_UPDATES if self.algorithm == "mcem" else 1

    @property
    def name(self) -> str:
        """Name of its folder."""
        rows = f"-{self.n_train}" if self.n_train else ""
        measure = "-error" if self.measure == "reconstruction error" else ""
        step_size = "" if self.step_size is None else f"-step-{self.step_size:g}"
        init = "" if self.init is None else f"-init-{self.init}"
        return f"{self.dataset}{rows}-{self.algorithm}-{self.latent_dim}x{self.hidden}{measure}{step_size}{init}"


def experiments(
    figure: str,
    *,
    datasets: Iterable[str] = (),
    latent_dims: Iterable[int] = (),
    algorithms: Iterable[str] = (),
    n_train: Iterable[int] = (),
    n_samples: int | None = None,
    step_size: float | None = None,
    init: str | float | None = None,
) -> list[Experiment]:
    """Return the experiments of a figure, those with the fewest latent dimensions last; empty arguments mean all.

    `step_size` and `init` replace what the protocol's rule would choose.

    Raises
    ------
    ValueError
        There is no such experiment in this figure.
    """
    protocol = FIGURES[figure]
    found = [
        Experiment(
            dataset,
            algorithm,
            protocol.measure,
            J,
            protocol.hidden[dataset],
            rows,
            n_samples or protocol.n_samples,
            step_size,
            init,
        )
        for dataset in protocol.latent_dims
        for rows in protocol.n_train[dataset]
        for algorithm in protocol.algorithms
        for J in sorted(protocol.latent_dims[dataset], reverse=True)
    ]
    wanted: dict[str, set[Any]] = {
        "dataset": set(datasets),
        "latent_dim": set(latent_dims),
        "algorithm": set(algorithms),
        "n_train": set(n_train),
    }
    for field, values in wanted.items():
        offered = {getattr(experiment, field) for experiment in found}
        if unknown := values - offered:
            known = ", ".join(map(str, sorted(offered)))
            raise ValueError(f"{figure} has no {field} {sorted(unknown)[0]}; it has {known}")
    return [e for e in found if all(not values or getattr(e, field) in values for field, values in wanted.items())]


@cache
def _curves() -> dict[tuple[str, str, int, int, str, str], Curve]:
    points: dict[tuple[str, str, int, int, str, str], list[tuple[float, float]]] = {}
    table = (files("fastvae.reproduce") / "paper_curves.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(table.splitlines()):
        key = (
            f"fig{row['figure']}",
            row["dataset"],
            int(row["latent_dim"]),
            int(row["n_train"] or 0),
            row["algorithm"],
            row["split"],
        )
        points.setdefault(key, []).append((float(row["samples_seen"]), float(row["nats_per_datapoint"])))
    return {key: tuple(sorted(curve)) for key, curve in points.items()}


def paper_curve(figure: str, experiment: Experiment, split: str) -> Curve:
    """Return the paper's curve of an experiment for ``"train"`` or ``"test"``; empty where the figure has none."""
    e = experiment
    return _curves().get((figure, e.dataset, e.latent_dim, e.n_train, e.algorithm, split), ())


def interpolate(curve: Curve, samples: float) -> float | None:
    """Return a curve's value at a number of samples, linear in their logarithm; None outside of it."""
    for at, value in curve:
        if at == samples:
            return value
    for (left, low), (right, high) in pairwise(curve):
        if left <= samples <= right:
            return low + (high - low) * (log(samples / left) / log(right / left))
    return None
