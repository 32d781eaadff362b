"""One experiment: its step size chosen, its model trained, its curve measured on the way; a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log10
from pathlib import Path
from typing import Any

import numpy as np

from fastvae.callbacks import Callback, Checkpoint, say
from fastvae.checkpoint import list_checkpoints
from fastvae.data import Dataset, Split, load
from fastvae.errors import CheckpointError, DivergenceError, one_line
from fastvae.evaluation import PASSING_DRAWS
from fastvae.files import lock_folder, make_folder, replace_file
from fastvae.model import Model
from fastvae.model_file import read_model
from fastvae.optimizer import Optimizer
from fastvae.reproduce.errors import reconstruction_error
from fastvae.reproduce.paper import Curve, Experiment
from fastvae.training import fitting

__all__ = [
    "STEP_SIZES",
    "Machine",
    "choices",
    "initial_weights",
    "load_split",
    "new_model",
    "read_curves",
    "report_damaged",
    "run",
]

BATCH_SIZE = 100
# Section 5: "chosen from {0.01, 0.02, 0.1} based on performance on the training set in the first few iterations".
STEP_SIZES = (0.01, 0.02, 0.1)
TRIAL_SAMPLES = 100_000
# Steps in which Adagrad only gathers squares, as the author's later code has it: without them 0.1 diverges.
HOLD_STEPS = 100
# Points of a curve per factor of ten by what is measured, and where it begins. A marginal likelihood takes longer than
# a bound by far.
POINTS_PER_DECADE = {"bound": 12, "marginal likelihood": 4, "reconstruction error": 12}
FIRST_SAMPLES = 100_000
# Of either set, by what is measured: as many as the test set of MNIST has; section 5 of the paper.
MEASURED_ROWS = {"bound": 10_000, "marginal likelihood": 1000, "reconstruction error": 10_000}
LIKELIHOODS = {"mnist": "bernoulli", "freyface": "gaussian"}
# Columns of the history by which a step size is judged; the bound of those that are not here.
OBJECTIVES = {"mcem": "log_pxz", "autoencoder": "log_px"}
# Initial weights: the paper's N(0, 0.01) read as a variance, except where this matches its curves far better (see
# docs/paper.md): wake-sleep on MNIST needs larger ones to get off as fast, and on Frey Face leaves the latents unused,
# as in the paper, only from smaller ones and at one of the three step sizes.
INIT: dict[tuple[str, str], str | float] = {("mnist", "wake-sleep"): "fan_in", ("freyface", "wake-sleep"): 0.01}
DEFAULT_INIT = 0.1
FIXED_STEP_SIZES = {("freyface", "wake-sleep"): 0.02}


@dataclass(frozen=True)
class Machine:
    """Where and how an experiment runs; none of it belongs to the experiment itself."""

    backend: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    seed: int = 0
    data_dir: str | None = None


def run(experiment: Experiment, folder: Path, machine: Machine, report: Callable[[int, str], None]) -> None:
    """Run an experiment in a folder from wherever an earlier run of it stopped.

    It leaves checkpoints, ``step_size.json``, and ``curve.csv`` with a row per point: training samples seen, and the
    value on the first training rows and on the test rows, in nats per datapoint.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        Made if missing.
    machine : Machine
    report : callable
        Told now and then how many training samples are done, with a line about it or an empty string.

    Raises
    ------
    CheckpointError
        Another process runs in the folder, or it holds another experiment.
    FastvaeError
        See `fastvae.training.fitting`.
    """
    make_folder(folder)
    with lock_folder(folder) as is_ours:
        if not is_ours:
            raise CheckpointError(f"another process runs in {folder}; wait for it or name another --out")
        split = load_split(experiment, machine)
        resumed = _open(experiment, folder, machine)
        if resumed:
            model, curve = resumed
            model.n_epochs = _epochs(experiment, split, experiment.n_samples)
        else:
            step_size = _step_size(experiment, split, folder, machine)
            model = new_model(experiment, split, machine, step_size=step_size, n_samples=experiment.n_samples)
            curve = []
        points = _Points(experiment, split, folder, curve, report)
        source = {"data": experiment.dataset, "test_fraction": None, "data_dir": machine.data_dir}
        saving = Checkpoint(
            folder / "checkpoints",
            keep=2,
            metadata=lambda: {"run": source, "experiment": vars(experiment), "curve": points.curve},
        )
        model.callbacks = [points, saving]
        (fitting.resume if resumed else fitting.fit)(model, split.train)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Return the curves that an experiment has left so far, by ``"train"`` and ``"test"``."""
    path = folder / "curve.csv"
    if not path.is_file():
        return {"train": (), "test": ()}
    rows = [tuple(map(float, line.split(","))) for line in path.read_text().splitlines()[1:]]
    return {name: tuple((row[0], row[i]) for row in rows) for i, name in ((1, "train"), (2, "test"))}


def load_split(experiment: Experiment, machine: Machine) -> Split:
    """Return the dataset of an experiment: its first training rows, and the test rows."""
    split = load(experiment.dataset, data_dir=machine.data_dir)
    return Split(split.train.select(slice(experiment.n_train or split.train.n_rows)), split.test)


def _open(experiment: Experiment, folder: Path, machine: Machine) -> tuple[Model, list[list[float]]] | None:
    """Return the model and curve of the newest checkpoint, or None where there is none."""
    if not list_checkpoints(folder / "checkpoints"):
        return None
    path, checkpoint, model = read_model(folder / "checkpoints", report_damaged, Model)
    begun = Experiment(**checkpoint.metadata["experiment"])
    if replace(begun, n_samples=experiment.n_samples) != experiment:
        raise CheckpointError(f"{path} belongs to another experiment ({begun.name}); name another --out")
    for name in ("precision", "seed"):
        before = model.seed_ if name == "seed" else model.precision
        if before != getattr(machine, name):
            raise _other_option(folder, name, before)
    model.backend, model.n_threads = machine.backend, machine.threads
    return model, checkpoint.metadata["curve"]


def _other_option(folder: Path, name: str, before: object) -> CheckpointError:
    return CheckpointError(f"the run in {folder} has --{name} {before}; keep it or name another --out")


def report_damaged(path: Path, error: CheckpointError) -> None:
    """Name a damaged checkpoint on stderr; an older one is taken."""
    say(f"fastvae: skipping a damaged checkpoint: {one_line(error)}")


def new_model(experiment: Experiment, split: Split, machine: Machine, *, step_size: float, n_samples: int) -> Model:
    """Return an untrained model by the paper's protocol (section 5), which goes to `n_samples` in whole epochs."""
    return Model(
        experiment.latent_dim,
        hidden_dims=(experiment.hidden,),
        algorithm=experiment.algorithm,
        likelihood=LIKELIHOODS[experiment.dataset],
        optimizer=Optimizer("adagrad", step_size, hold_steps=HOLD_STEPS),
        batch_size=BATCH_SIZE,
        n_epochs=_epochs(experiment, split, n_samples),
        prior=True,
        init=initial_weights(experiment),
        backend=machine.backend,
        precision=machine.precision,
        n_threads=machine.threads,
        random_state=machine.seed,
    )


def initial_weights(experiment: Experiment) -> str | float:
    """Return how an experiment's weights begin, as `fastvae.network.initialise` takes it."""
    if experiment.init is not None:
        return experiment.init
    return INIT.get((experiment.dataset, experiment.algorithm), DEFAULT_INIT)


def _fixed_step_size(experiment: Experiment) -> float | None:
    """Return the step size that is not left to the trials."""
    return experiment.step_size or FIXED_STEP_SIZES.get((experiment.dataset, experiment.algorithm))


def _steps(experiment: Experiment, samples: int) -> int:
    return -(-samples // (BATCH_SIZE * experiment.evaluations))


def _epochs(experiment: Experiment, split: Split, samples: int) -> int:
    return -(-_steps(experiment, samples) // (split.train.n_rows // BATCH_SIZE))


def choices(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Return what was left to choose in an experiment that has run in a folder.

    Returns
    -------
    dict
        ``initial_weights``; ``step_size``; ``tried``, the objective by step size after the first iterations, None where
        it diverged, or None as a whole where the step size was fixed. JSON-serialisable.
    """
    fixed = _fixed_step_size(experiment)
    tried = None if fixed else _read_choice(folder)["tried"]
    step_size = fixed if tried is None else _best(tried)
    return {"initial_weights": initial_weights(experiment), "step_size": step_size, "tried": tried}


def _read_choice(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "step_size.json").read_text()))


def _best(tried: dict[str, float | None]) -> float:
    objectives = {size: value for size, value in tried.items() if value is not None}
    if not objectives:
        raise DivergenceError(f"training diverged in the first iterations with each step size of {', '.join(tried)}")
    return float(max(objectives, key=objectives.__getitem__))


def _step_size(experiment: Experiment, split: Split, folder: Path, machine: Machine) -> float:
    """Return the step size that does best on the training set in the first iterations; tried once per folder."""
    if fixed := _fixed_step_size(experiment):
        return fixed
    path, key = folder / "step_size.json", {"seed": machine.seed, "precision": machine.precision}
    if not path.is_file():
        tried = {str(step_size): _trial(experiment, split, machine, step_size) for step_size in STEP_SIZES}
        with replace_file(path) as stream:
            stream.write((json.dumps({"tried": tried, **key}) + "\n").encode())
    choice = _read_choice(folder)
    for name, value in key.items():
        if choice[name] != value:
            raise _other_option(folder, name, choice[name])
    return _best(choice["tried"])


def _trial(experiment: Experiment, split: Split, machine: Machine, step_size: float) -> float | None:
    """Return the objective of the last epoch of a short training, or None where it diverged."""
    model = new_model(experiment, split, machine, step_size=step_size, n_samples=TRIAL_SAMPLES)
    try:
        fitting.fit(model, split.train)
    except DivergenceError:
        return None
    return float(model.history_[OBJECTIVES.get(experiment.algorithm, "elbo")][-1])


class _Points(Callback):
    """Measures the points of the curve, and ends the run when whoever started it is gone."""

    every_epoch = False

    def __init__(
        self,
        experiment: Experiment,
        split: Split,
        folder: Path,
        curve: list[list[float]],
        report: Callable[[int, str], None],
    ) -> None:
        density = POINTS_PER_DECADE[experiment.measure]
        n_points = ceil(density * log10(experiment.n_samples / FIRST_SAMPLES))
        samples = [FIRST_SAMPLES * 10 ** (i / density) for i in range(n_points)]
        self.per_step, last = BATCH_SIZE * experiment.evaluations, _steps(experiment, experiment.n_samples)
        self.steps = sorted({*(round(n / self.per_step) for n in samples), last})
        self.experiment, self.curve = experiment, curve
        self.path, self.report, self.parent = folder / "curve.csv", report, os.getppid()
        n_rows = MEASURED_ROWS[experiment.measure]
        self.rows = [part.select(slice(min(n_rows, part.n_rows))) for part in (split.train, split.test) if part]

    def next_stop(self, step: int) -> int | None:
        """Return the next point."""
        return next((stop for stop in self.steps if stop > step), None)

    def before_training(self, model: Model, n_steps: int) -> None:
        """Make up for a point whose measurement was cut, and for a table that was."""
        samples = model.n_steps_ * self.per_step
        if model.n_steps_ in self.steps and samples not in [done for done, *_ in self.curve]:
            self._add_point(model, samples)
        self._write()

    def after_steps(self, model: Model, step: int) -> None:
        """Measure a point."""
        if os.getppid() != self.parent:
            raise KeyboardInterrupt
        samples, line = step * self.per_step, ""
        if step in self.steps:
            line = self._add_point(model, samples)
            self._write()
        self.report(samples, line)

    def _add_point(self, model: Model, samples: int) -> str:
        values = [self._measure(model, rows) for rows in self.rows]
        self.curve.append([samples, *values])
        return "  ".join(f"{name} {value:.2f}" for name, value in zip(("train", "test"), values, strict=True))

    def _write(self) -> None:
        lines = ["samples_seen,train,test", *(",".join(map(repr, row)) for row in self.curve)]
        with replace_file(self.path) as stream:
            stream.write(("\n".join(lines) + "\n").encode())

    def _measure(self, model: Model, rows: Dataset) -> float:
        if self.experiment.measure == "bound":
            return float(model.evaluate(rows, n_draws=PASSING_DRAWS).elbo.mean())
        if self.experiment.measure == "reconstruction error":
            return reconstruction_error(model, rows)
        # Without the few rows that the estimator has no value for; it warns of them.
        return float(np.nanmean(model.log_likelihood(rows, estimator="marginal-likelihood").values))
