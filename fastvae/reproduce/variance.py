"""Variance of gradients: SGVB beside the naive score-function estimator of section 2.2, in the course of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.model_plans import training_plan
from fastvae.network import initialise
from fastvae.reproduce.paper import experiments
from fastvae.reproduce.plots import save
from fastvae.reproduce.run import BATCH_SIZE, DEFAULT_INIT, Machine, load_split, new_model
from fastvae.settings import is_fitted, network
from fastvae.training import fitting
from fastvae.training.gradients import GRADIENT_ESTIMATORS, phi_gradient

if TYPE_CHECKING:
    from fastvae.kernels import Array, Plan

__all__ = ["plot", "variances"]

LATENT_DIM, STEP_SIZE = 20, 0.02
EPOCHS = (0, 1, 2, 5, 10, 20)
N_ROWS, N_DRAWS = 100, 64


def variances(
    machine: Machine, *, epochs: tuple[int, ...] = EPOCHS, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure, for one minibatch of MNIST, how gradients in phi spread over draws of eps.

    Parameters
    ----------
    machine : Machine
    epochs : tuple of int
        Epochs of training, by AEVB, after which it is measured.
    say : callable
        Told a line now and then.

    Returns
    -------
    list of dict
        Per ``samples`` trained on and ``estimator``: ``variance``, that of one draw per datapoint, summed over the
        parameters phi; ``signal``, the squared length of the mean gradient by SGVB-B; ``ratio`` of the variance to that
        of SGVB-B.
    """
    (experiment,) = experiments("fig2", datasets=["mnist"], latent_dims=[LATENT_DIM], algorithms=["aevb"])
    split = load_split(experiment, machine)
    data = split.train
    model = new_model(experiment, split, machine, step_size=STEP_SIZE, n_samples=data.n_rows)
    model.network_, model.n_samples_seen_ = network(model, data.data_dim), data.n_rows
    plan = training_plan(model)
    x = np.empty((N_ROWS, data.data_dim), np.float32)
    first = np.arange(N_ROWS, dtype=np.int64)
    plan.gather(data=data.rows, index=first, scale=data.scale, binarize="none", seed=0, step=0, x=x)
    rows: list[dict[str, Any]] = []
    for epoch in epochs:
        if epoch:
            model.n_epochs = epoch
            (fitting.resume if is_fitted(model) else fitting.fit)(model, data)
        params = model.params_ if epoch else initialise(model.network_, seed=machine.seed, init=DEFAULT_INIT)
        spread = {name: _moments(plan, params, x, name, machine.seed) for name in GRADIENT_ESTIMATORS}
        for name, (_, variance) in spread.items():
            rows.append(
                {
                    "samples": epoch * (data.n_rows // BATCH_SIZE * BATCH_SIZE),
                    "estimator": name,
                    "variance": variance,
                    "signal": spread["sgvb-b"][0],
                    "ratio": variance / spread["sgvb-b"][1],
                }
            )
        say(f"after {rows[-1]['samples']:,} samples: " + ", ".join(f"{n} {v:.3g}" for n, (_, v) in spread.items()))
    return rows


def _moments(plan: Plan, params: Array, x: Array, estimator: str, seed: int) -> tuple[float, float]:
    """Return the squared length of the mean gradient, and the sum of the parameters' variances."""
    total, squares = np.zeros(plan.network.layout.encoder[-1].end), 0.0
    for draw in range(N_DRAWS):
        gradient = phi_gradient(plan, params, x, estimator=estimator, seed=seed, step=draw).astype(np.float64)
        total += gradient
        squares += float(gradient @ gradient)
    length = float(total @ total) / N_DRAWS**2
    variance = (squares - N_DRAWS * length) / (N_DRAWS - 1)
    return length - variance / N_DRAWS, variance  # the mean of N_DRAWS has that much of the variance left


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the variances over the training samples, as `path` with .png and .svg."""
    import matplotlib.pyplot as plt

    picture, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    names = {"sgvb-b": "SGVB-B", "sgvb-a": "SGVB-A", "score-function": "score function (section 2.2)"}
    for name, label in names.items():
        curve = [(row["samples"], row["variance"]) for row in rows if row["estimator"] == name]
        ax.plot(*zip(*curve, strict=True), "o-", markersize=3, label=label)
    signal = [(row["samples"], row["signal"]) for row in rows if row["estimator"] == "sgvb-b"]
    ax.plot(*zip(*signal, strict=True), "--", color="0.5", label="squared length of the gradient")
    ax.set_xscale("symlog", linthresh=5e4)
    ax.set_yscale("log")
    ax.set_xlabel("training samples")
    ax.set_ylabel("variance of the gradient in phi")
    ax.legend(fontsize=8, frameon=False)
    ax.grid(alpha=0.25, linewidth=0.5)
    save(picture, path)
