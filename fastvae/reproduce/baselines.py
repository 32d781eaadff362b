"""Reconstruction at equal code size: the VAE beside a deterministic autoencoder and principal components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvae.reproduce.errors import pca_errors
from fastvae.reproduce.paper import Experiment, interpolate
from fastvae.reproduce.run import Machine, load_split, read_curves

__all__ = ["baselines"]


def baselines(experiments: Sequence[Experiment], folder: Path, machine: Machine) -> list[dict[str, Any]]:
    """Return the errors on test rows of experiments that have been run in `folder`, and of PCA.

    Parameters
    ----------
    experiments : sequence of Experiment
        Of one dataset, measured by their reconstruction error.
    folder : Path
    machine : Machine

    Returns
    -------
    list of dict
        ``latent_dim``, and the mean squared error per dimension of ``pca`` and of each algorithm after its training.
    """
    split = load_split(experiments[0], machine)
    latent_dims = sorted({e.latent_dim for e in experiments})
    rows: list[dict[str, Any]] = [
        {"latent_dim": J, "pca": error} for J, error in zip(latent_dims, pca_errors(split, latent_dims), strict=True)
    ]
    for row in rows:
        for e in experiments:
            if e.latent_dim == row["latent_dim"]:
                row[e.algorithm] = interpolate(read_curves(folder / e.name)["test"], e.n_samples)
    return rows
