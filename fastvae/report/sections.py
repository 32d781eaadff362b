"""The sections of a model's page, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from fastvae import settings
from fastvae.kernels import Array
from fastvae.report import explorer as explorers
from fastvae.report.charts import Series, bar_chart, line_chart, number, scatter_svg
from fastvae.report.explorer import Start, data_uri, latent_frame
from fastvae.report.pictures import comparison_grid, grid
from fastvae.report.subject import Subject, shown_dimensions

__all__ = ["CURVES", "configuration", "duration", "final_figures", "sections", "table", "unit_range"]

# title, unit, column of the training rows, column of the test rows, decimals
CURVES = (
    ("Bound (ELBO)", "nats per datapoint", "elbo", "elbo_test", 2),
    ("Reconstruction, log p(x|z)", "nats per datapoint", "log_px", "log_px_test", 2),
    ("KL divergence of q(z|x)", "nats per datapoint", "kl", "kl_test", 2),
    ("Joint, log p(x, z)", "nats per datapoint", "log_pxz", "", 2),
    ("KL divergence of the weights", "nats per datapoint", "kl_theta", "", 3),
    ("Accepted HMC transitions", "share", "acceptance", "", 3),
    ("Active units", "latent dimensions", "", "active_units", 0),
)
_MAX_BARS = 100
_PROFILES = 6
_STARTS = 10


def sections(subject: Subject) -> list[tuple[str, str, str]]:
    """Return name, title and content of each section of a page; what does not apply is left out."""
    parts = (
        ("explorer", "Explorer", _explorer(subject)),
        ("curves", "Curves and throughput", _curves(subject)),
        ("latents", "Latent space", _latents(subject)),
        ("pictures", "Reconstructions and samples", _pictures(subject)),
        ("configuration", "Configuration and machine", _configuration(subject)),
        ("history", "History", _history(subject)),
    )
    return [part for part in parts if part[2]]


def final_figures(subject: Subject) -> list[tuple[str, str, str]]:
    """Return value, unit and explanation of the figures at the head of a page, the most important first."""
    state, history, figures = subject.model.state_, subject.model.history_, []
    if subject.bound is not None:
        found = subject.bound.summary()
        error = found["elbo_standard_error"]
        spread = "" if error is None else f" ± {number(error)}"
        figures.append(
            (
                f"{number(found['elbo'])}{spread}",
                "nats per datapoint",
                f"{subject.split} bound (ELBO) of {found['n_rows']:,} rows, {found['n_draws']} draws of z each; "
                "± is the standard error over rows",
            )
        )
        figures.append((number(found["kl"]), "nats", "KL divergence of q(z|x) from the prior"))
        active, every = found["active_units"], subject.model.network_.latent_dim
        figures.append((f"{active:,} of {every:,}", "latent dimensions", "active: their posterior mean varies"))
    else:
        for title, unit, train, test, digits in CURVES:
            for column, part in ((test, "test"), (train, "train")):
                values = [v for v in history.get(column, ()) if v is not None]
                if values and not figures:
                    told = f"{title}, {part} rows, last epoch, without a standard error"
                    figures.append((number(values[-1], digits), unit, told))
    speed = state.samples / max(state.seconds, 1e-9)
    figures.append((f"{speed:,.0f}", "samples/s", f"{state.samples:,} samples in {state.step:,} steps"))
    epochs = f"{state.epochs_closed:,} epoch{'' if state.epochs_closed == 1 else 's'}"
    figures.append((duration(state.seconds), "training time", epochs))
    return figures


def unit_range(column: str, latent_dim: int) -> tuple[float, float] | None:
    """Return the range of a chart of numbers of latent dimensions; None for any other column."""
    return (0.0, 1.08 * latent_dim) if column == "active_units" else None


def _curves(subject: Subject) -> str:
    history = subject.model.history_
    charts = []
    for title, unit, train, test, digits in CURVES:
        series = [
            Series(name, history["epoch"], history[column], style)
            for name, column, style in (("train", train, "s1"), ("test", test, "s0"))
            if any(value is not None for value in history.get(column, ()))
        ]
        if series:
            limits = unit_range(test, subject.model.network_.latent_dim)
            charts.append(line_chart(title, series, x_label="epoch", unit=unit, digits=digits, y_range=limits))
    if not charts:
        return "<p class=note>No epoch is complete yet.</p>"
    speeds = history["samples_per_second"]
    series, limits = [Series("training", history["epoch"], speeds, "s0")], (0.0, 1.08 * max(speeds))
    charts.append(line_chart("Throughput", series, x_label="epoch", unit="samples/s", digits=0, y_range=limits))
    told = (
        "Train: means over an epoch's minibatches while it trained. Test: taken after it. Throughput is that of the "
        "engine, without evaluation and checkpoints."
    )
    return f"<div class=charts>{''.join(charts)}</div><p class=note>{told}</p>"


def _latents(subject: Subject) -> str:
    parts = []
    if (kl := subject.kl_per_dimension) is not None:
        order = np.argsort(-kl, kind="stable")[:_MAX_BARS]
        names = [f"z{j}" for j in order.tolist()]
        title = "KL divergence of each dimension"
        if len(kl) > len(order):
            title = f"KL divergence of the {_MAX_BARS} most used of {len(kl):,} dimensions"
        parts.append(bar_chart(title, names, kl[order].tolist(), x_label="latent dimension", unit="nats per datapoint"))
    is_on_pad = subject.model.network_.latent_dim == 2 and explorers.left_out(subject.model) is None
    if subject.codes is not None and subject.model.network_.latent_dim > 1 and not is_on_pad:
        first, second = shown_dimensions(subject.codes, subject.kl_per_dimension)
        codes = subject.codes[:, [first, second]]
        labels = None if subject.labels is None else subject.labels[: len(codes)]
        frame = latent_frame(codes)
        inside = scatter_svg(codes, labels, frame, x_label=_z(first), y_label=_z(second))
        what = f"Posterior means of {len(codes):,} {subject.split} rows" + ("" if labels is None else ", by label")
        more = "" if subject.model.network_.latent_dim == 2 else ", the two most used dimensions"
        parts.append(
            f"<figure class=chart><figcaption><b>{what}</b>"
            f"<span class=unit>z{first} and z{second}{more}</span></figcaption>"
            f"<svg viewBox='0 0 {frame.width:g} {frame.height:g}' role=img "
            f"aria-label='{what}: z{first} to the right, z{second} upwards'>{inside}</svg></figure>"
        )
    if subject.model.network_.latent_dim == 2 and subject.image_shape is not None:
        side = 20
        picture = grid(subject.model.manifold(side), subject.image_shape, columns=side, ground=np.nan, side=28)
        parts.append(
            _picture(
                picture,
                "Manifold",
                f"Means of p(x|z) on a grid of {side} × {side} codes, even in the prior's probability: z0 rises to the "
                "right, z1 upwards.",
                " large",
            )
        )
    return f"<div class=charts>{''.join(parts)}</div>" if parts else ""


def _z(dimension: int) -> str:
    return f"z<tspan dy=3>{dimension}</tspan>"


def _pictures(subject: Subject) -> str:
    absent = f"<p class=note>No reconstructions: {escape(subject.absent)}.</p>" if subject.absent else ""
    if subject.dataset is not None and subject.pairs is None:
        absent = f"<p class=note>No reconstructions: {subject.model.algorithm_} trains no recognition model.</p>"
    drawn = _images(subject, subject.image_shape) if subject.image_shape else _profiles(subject)
    return absent + f"<div class='charts{' wide' if subject.image_shape else ''}'>{drawn}</div>"


def _images(subject: Subject, shape: tuple[int, int]) -> str:
    parts = []
    if subject.pairs is not None:
        pairs = comparison_grid(subject.pairs, shape, ground=np.nan)
        told = f"{subject.split.capitalize()} rows above, what the model makes of them below, line by line."
        parts.append(_picture(pairs, "Reconstructions", told))
    samples = grid(subject.model.sample(60), shape, ground=np.nan)
    parts.append(_picture(samples, "Samples", "Means of p(x|z) for z drawn from the prior."))
    return "".join(parts)


def _picture(picture: Array, title: str, told: str, style: str = "") -> str:
    height, width = picture.shape
    return (
        f"<figure class='picture{style}'><figcaption><b>{title}</b> <span class=unit>{escape(told)}</span></figcaption>"
        f"<img width={width} height={height} alt='{escape(f'{title}. {told}')}' src='{data_uri(picture)}'></figure>"
    )


def _profiles(subject: Subject) -> str:
    """Draw rows that are no images over their columns."""
    columns = np.arange(subject.model.network_.data_dim).tolist()
    samples = subject.model.sample(_PROFILES)
    if subject.pairs is not None:
        rows = [
            (
                f"{subject.split.capitalize()} row {i}",
                [Series("row", columns, seen.tolist(), "s1"), Series("reconstruction", columns, mean.tolist(), "s0")],
            )
            for i, (seen, mean) in enumerate(zip(*subject.pairs, strict=True))
        ][:_PROFILES]
    else:
        rows = [(f"Sample {i}", [Series("mean", columns, row.tolist(), "s0")]) for i, row in enumerate(samples)]
    return "".join(
        line_chart(title, series, x_label="column", unit="values as the model sees them") for title, series in rows
    )


def _explorer(subject: Subject) -> str:
    if reason := explorers.left_out(subject.model):
        return f"<p class=note>The explorer is left out. {reason}</p>"
    model, shape = subject.model, subject.image_shape
    shown = [model.sample(60)] + ([] if subject.pairs is None else list(subject.pairs))
    low, high = min(float(rows.min()) for rows in shown), max(float(rows.max()) for rows in shown)
    value_range = (min(low, 0.0), max(high, 1.0)) if shape is not None else (low, high + (high <= low))
    return explorers.explorer(
        model,
        image_shape=shape,
        value_range=value_range,
        kl=subject.kl_per_dimension,
        codes=subject.codes if model.network_.latent_dim == 2 else None,
        labels=None if subject.labels is None or subject.codes is None else subject.labels[: len(subject.codes)],
        starts=_starts(subject, value_range),
    )


def _starts(subject: Subject, value_range: tuple[float, float]) -> list[Start]:
    """Choose rows to start from: one of each label, else the first ones."""
    if subject.dataset is None or subject.codes is None:
        return []
    codes, labels, shape = subject.codes, subject.labels, subject.image_shape
    chosen = list(range(min(_STARTS, len(codes))))
    if labels is not None:
        chosen = np.unique(labels[: len(codes)], return_index=True)[1].tolist()[:_STARTS]
    seen = subject.dataset.select(chosen).as_seen()
    low, high = value_range
    return [
        Start(
            f"{subject.split} row {i}" + ("" if labels is None else f", label {labels[i]}"),
            codes[i],
            None if shape is None else (row.reshape(shape) - low) / (high - low),
        )
        for i, row in zip(chosen, seen, strict=True)
    ]


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


def _configuration(subject: Subject) -> str:
    groups = configuration(subject).items()
    return f"<div class=groups>{''.join(_group(title, lines) for title, lines in groups)}</div>"


def _group(title: str, lines: Mapping[str, str]) -> str:
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in lines.items())
    return f"<div><h3>{title}</h3><dl>{shown}</dl></div>"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _history(subject: Subject) -> str:
    history = subject.model.history_
    if not history:
        return ""
    count = len(history["epoch"])
    kept = np.unique(np.linspace(0, count - 1, min(count, 200)).round().astype(int)).tolist()
    rows = [[_cell(history[name][i]) for name in history] for i in kept]
    told = "" if len(kept) == count else f" ({len(kept)} of {count:,} epochs; all are in history.csv)"
    return (
        f"<details><summary>All columns, epoch by epoch{told}</summary>"
        f"{table([name.replace('_', ' ') for name in history], rows)}</details>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else number(value, 0 if abs(value) >= 10_000 else 3)


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
    return f"<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def duration(seconds: float) -> str:
    """Write a time with its unit."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
