"""``fastvae info``."""

from __future__ import annotations

import platform
from typing import Any

import click

from fastvae.cli.options import json_option, print_json, print_table

__all__ = ["info"]


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Show version, backends, threads and folders.

    Of a backend that is missing it says why; of cuda, who makes the matrix products of a training step.
    """
    values = _collect()
    if as_json:
        print_json(values)
        return
    rows: list[tuple[str, Any]] = [(name, value) for name, value in values.items() if name != "backends"]
    for name, state in values["backends"].items():
        place = f" on {state['isa']}" if state["isa"] else ""
        products = f"; products: {state['products']}" if state["products"] else ""
        available = f"available{place} ({', '.join(state['precisions'])}){products}"
        rows.append((f"backend {name}", state["reason"] or available))
    print_table(rows)


def _collect() -> dict[str, Any]:
    import numpy as np

    from fastvae import __version__, backends
    from fastvae.data import data_folder
    from fastvae.files import cache_folder

    states: dict[str, Any] = {}
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        engine = None if reason else backends.load(name)
        states[name] = {
            "available": reason is None,
            "reason": reason,
            "precisions": list(engine.PRECISIONS) if engine else [],
            "isa": backends.isa_level(engine) if engine else None,
            "products": getattr(engine, "products", lambda: None)(),
        }
    return {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "default_backend": backends.resolve(),
        "device": states["cuda"]["isa"],
        "isa": next((state["isa"] for name, state in states.items() if state["isa"] and name != "cuda"), None),
        "threads": backends.default_threads(),
        "data_folder": str(data_folder()),
        "cache_folder": str(cache_folder()),
        "backends": states,
    }
