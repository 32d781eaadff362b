"""``fastvae data``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fastvae.cli.options import complete_dataset, data_dir_option, json_option, note, print_json

__all__ = ["data"]


@click.group(invoke_without_command=True)
@data_dir_option
@json_option
@click.pass_context
def data(context: click.Context, /, **options: Any) -> None:
    """List the named datasets, or fetch one."""
    context.default_map = dict.fromkeys(data.commands, options)
    if context.invoked_subcommand is None:
        context.invoke(list_, **options)


@data.command("list")
@data_dir_option
@json_option
def list_(data_dir: Path | None, as_json: bool) -> None:
    """List the named datasets with their state."""
    from fastvae.data import list_datasets

    datasets = list_datasets(data_dir)
    if as_json:
        print_json(
            {
                d.name: {
                    "rows": d.rows,
                    "columns": d.columns,
                    "state": d.state,
                    "folder": None if d.folder is None else str(d.folder),
                    "missing": list(d.missing),
                    "source": d.source,
                }
                for d in datasets
            }
        )
        return
    for d in datasets:
        where = f"in {d.folder}" if d.state == "present" else ""
        if d.state == "missing":
            where = f"not in {d.folder}; run: fastvae data fetch {d.name}"
        print(f"{d.name:<9} {d.rows:>6} x {d.columns:<4} {d.state:<8} {where}".rstrip())


@data.command()
@click.argument("name", shell_complete=complete_dataset)
@data_dir_option
@json_option
def fetch(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download a named dataset, checked by its SHA-256."""
    from fastvae.data import fetch as fetch_dataset

    meter = _Meter()
    try:
        folder = fetch_dataset(name, data_dir=data_dir, progress=meter if sys.stderr.isatty() else None)
    finally:
        meter.close()
    if as_json:
        print_json({"name": name, "folder": str(folder)})
    else:
        note(f"{name} is in")
        print(folder)


class _Meter:
    """A progress bar per file."""

    def __init__(self) -> None:
        self.name = ""
        self.bar: Any = None

    def __call__(self, name: str, n_bytes: int, total: int | None) -> None:
        if name != self.name:
            from tqdm import tqdm

            self.close()
            self.name, self.bar = name, tqdm(desc=name, total=total, unit="B", unit_scale=True, file=sys.stderr)
        self.bar.update(n_bytes - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
