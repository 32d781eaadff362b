"""What a page says in tables: the configuration, the history, and tables as such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from fastvae import settings
from fastvae.report.charts import number
from fastvae.report.subject import Subject

__all__ = ["configuration", "configuration_lists", "duration", "history_table", "table"]

_HISTORY_ROWS = 200


def configuration(subject: Subject) -> dict[str, dict[str, str]]:
    """Return what a model was trained with, as text by name, in groups."""
    model, network, engine = subject.model, subject.model.network_, subject.engine
    optimizer, values = model.optimizer_, settings.to_json(model)
    widths = (*network.encoder_dims[:-1], network.latent_dim, *network.decoder_dims[1:-1], network.data_dim)
    head = {"mean": network.mean, "logvar floor": network.logvar_floor} if network.likelihood == "gaussian" else {}
    chosen = ("batch_size", "n_draws", "kl_weight", "kl_warmup", "binarize", "prior", "init")
    rows = {} if subject.dataset is None else {f"{subject.split} rows": f"{subject.dataset.n_rows:,}"}
    groups: dict[str, dict[str, Any]] = {
        "Model": {
            "network": " – ".join(f"{width:,}" for width in widths),
            "parameters": f"{network.layout.size:,}",
            "activation": network.activation,
            "likelihood": network.likelihood,
            **head,
        },
        "Training": {
            "algorithm": model.algorithm_ + (f", {model.estimator_}" if model.algorithm_ == "aevb" else ""),
            "optimizer": optimizer.name,
            "learning rate": f"{optimizer.learning_rate:g}",
            **{name.replace("_", " "): values[name] for name in chosen},
            "epochs": f"{model.state_.epochs_closed:,} of {model.n_epochs:,}",
            "seed": model.seed_,
        },
        "Data": {**subject.data, "training rows": f"{model.n_samples_seen_:,}", **rows, "scale": f"{model.scale_:.6g}"},
        "Machine": {
            "processor": engine.get("processor"),
            "threads": engine["n_threads"],
            "backend": engine["backend"] + (f" ({engine['isa']})" if engine["isa"] else ""),
            "precision": engine["precision"],
        },
    }
    return {
        title: {name: _plain(value) for name, value in lines.items() if value is not None}
        for title, lines in groups.items()
    }


def configuration_lists(subject: Subject) -> str:
    """Return `configuration` as HTML."""
    groups = configuration(subject).items()
    return f"<div class=groups>{''.join(_group(title, lines) for title, lines in groups)}</div>"


def table(header: Iterable[str], rows: Iterable[Iterable[str]], *, best: int | None = None) -> str:
    """Return a table that scrolls by itself where the page is too narrow for it.

    Parameters
    ----------
    header : iterable of str
    rows : iterable of iterables of str
        Text; the first of each row is its name.
    best : int, optional
        Row that is marked.
    """
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in header)
    lines = []
    for i, (name, *cells) in enumerate(rows):
        mark = "<span class=badge>best</span>" if i == best else ""
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th scope=row>{escape(name)}{mark}</th>{shown}</tr>")
    body = "".join(lines)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll tabindex=0 role=region aria-label=Table>{whole}</div>"


def duration(seconds: float) -> str:
    """Write a time with its unit."""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def history_table(subject: Subject) -> str:
    """Return the history as a table that is folded away."""
    history = subject.model.history_
    if not history:
        return ""
    count = len(history["epoch"])
    kept = np.unique(np.linspace(0, count - 1, min(count, _HISTORY_ROWS)).round().astype(int)).tolist()
    shown = [name for name, column in history.items() if not any(isinstance(value, list) for value in column)]
    rows = [[_cell(history[name][i]) for name in shown] for i in kept]
    told = "" if len(kept) == count else f" ({len(kept)} of {count:,} epochs; all are in history.csv)"
    return (
        f"<details><summary>All columns, epoch by epoch{told}</summary>"
        f"{table([name.replace('_', ' ') for name in shown], rows)}</details>"
    )


def _group(title: str, lines: Mapping[str, str]) -> str:
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in lines.items())
    return f"<div><h3>{title}</h3><dl>{shown}</dl></div>"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or 0 < abs(value) < 0.01:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return number(value, 0 if abs(value) >= 10_000 else 3)
