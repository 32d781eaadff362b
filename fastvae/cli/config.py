"""``fastvae config``."""

from __future__ import annotations

from pathlib import Path

import click

from fastvae.cli.options import PATH, open_model
from fastvae.cli.run_folder import not_a_run
from fastvae.cli.run_options import as_toml, stored_options
from fastvae.cli.train import train

__all__ = ["config"]


@click.command()
@click.argument("run", type=PATH)
def config(run: Path) -> None:
    """Print the options of a run as TOML.

    They are those of its newest checkpoint; RUN is its folder, or a checkpoint. Given back with --config they repeat
    the run, bit for bit on the same machine.
    """
    path, checkpoint, model = open_model(run)
    if "run" not in checkpoint.metadata:
        raise not_a_run(path)
    engine = checkpoint.metadata["engine"]["backend"]
    print(as_toml(train, stored_options(model, checkpoint.metadata["run"], engine)), end="")
