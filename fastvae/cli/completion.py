"""``fastvae completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script for a shell's completion.

    With it the shell completes commands, options, choices, datasets and files. It has to run in every session, see the
    examples, and asks the installed fastvae for what to offer.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "fastvae", "_FASTVAE_COMPLETE").source())
