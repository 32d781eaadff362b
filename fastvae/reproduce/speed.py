"""Training speed beside the paper's, on the networks of figure 2."""

from __future__ import annotations

from typing import Any

from fastvae.reproduce.paper import SAMPLES_PER_SECOND, experiments
from fastvae.reproduce.run import Machine, load_split, new_model
from fastvae.training import fitting

__all__ = ["speeds"]

_WARM_SAMPLES, _SECONDS = 10_000, 5.0
_LATENT_DIM = {"mnist": 20, "freyface": 10}


def speeds(machine: Machine) -> list[dict[str, Any]]:
    """Train for some seconds on each dataset that is there.

    Parameters
    ----------
    machine : Machine

    Returns
    -------
    list of dict
        ``dataset``, ``latent_dim``, ``samples_per_second``, ``minutes_per_million``, and ``times_the_paper`` against
        its fastest, 833 samples/s (section 5: 20 to 40 minutes per million samples on a CPU of 2013).

    Raises
    ------
    DataError
        A dataset is not there.
    """
    rows = []
    for dataset, latent_dim in _LATENT_DIM.items():
        (experiment,) = experiments("fig2", datasets=[dataset], latent_dims=[latent_dim], algorithms=["aevb"])
        split = load_split(experiment, machine)
        samples, rate = _WARM_SAMPLES, 0.0
        for _ in range(2):  # the first to know how many samples take the seconds
            model = new_model(experiment, split, machine, step_size=0.02, n_samples=samples)
            fitting.fit(model, split.train)
            rate = model.state_.samples / model.state_.seconds
            samples = max(int(rate * _SECONDS), _WARM_SAMPLES)
        rows.append(
            {
                "dataset": dataset,
                "latent_dim": latent_dim,
                "samples_per_second": rate,
                "minutes_per_million": 1e6 / rate / 60,
                "times_the_paper": rate / SAMPLES_PER_SECOND[1],
            }
        )
    return rows
