"""What a run was asked for: options of ``fastvae train``, the parameters of the model, and the way between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from fastvae.cli.configuration import key_of, toml_line

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["CONTROLS", "DATA", "FLAGS", "MODEL", "SESSION", "as_toml", "new_model", "stored_options"]

# flag -> parameter of the model
MODEL = {
    "latent_dim": "latent_dim",
    "hidden": "hidden_dims",
    "decoder_hidden": "decoder_hidden_dims",
    "activation": "activation",
    "likelihood": "likelihood",
    "mean": "mean",
    "logvar_floor": "logvar_floor",
    "binarize": "binarize",
    "algorithm": "algorithm",
    "estimator": "estimator",
    "optimizer": "optimizer",
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
    "n_draws": "n_draws",
    "kl_weight": "kl_weight",
    "kl_warmup": "kl_warmup",
    "prior": "prior",
    "init": "init",
    "precision": "precision",
    "seed": "random_state",
}
# What a resumed run may change.
SESSION = {"epochs": "n_epochs", "backend": "backend", "threads": "n_threads"}
DATA = ("data", "test_fraction")
CONTROLS = ("checkpoint_every", "keep", "early_stopping", "tensorboard")
FLAGS = {parameter: "--" + flag.replace("_", "-") for flag, parameter in (MODEL | SESSION).items()}
FLAGS["test_fraction"] = "--test-fraction"


def new_model(context: click.Context, options: dict[str, Any]) -> Model:
    """Return the model that options of train ask for.

    Raises
    ------
    UsageError
        They are no model.
    """
    from fastvae import settings
    from fastvae.model import Model

    model = Model(**{parameter: options[flag] for flag, parameter in (MODEL | SESSION).items()})
    if model.mean != "sigmoid" and model.likelihood != "gaussian":
        raise click.UsageError(f"--mean {model.mean} needs --likelihood gaussian", context)
    try:
        settings.check(model)
    except ValueError as error:
        raise click.UsageError(str(error), context) from error
    return model


def stored_options(model: Model, run: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """Return the options of train that repeat a run, by the names of their arguments.

    An option is None where the run left it out: what its default came to follows from the others.
    """
    values = {flag: getattr(model, parameter) for flag, parameter in (MODEL | SESSION).items()}
    values |= {name: "none" for name in ("hidden", "decoder_hidden") if values[name] == ()}
    return values | {"backend": backend} | {name: run.get(name) for name in (*DATA, "data_dir", *CONTROLS)}


def as_toml(command: click.Command, values: Mapping[str, Any]) -> str:
    """Return options of a command as the lines of a file for --config."""
    options = {option.name: key_of(option) for option in command.params if isinstance(option, click.Option)}
    lines = [toml_line(key, values[name]) for name, key in options.items() if values.get(name) is not None]
    return "\n".join(lines) + "\n"
