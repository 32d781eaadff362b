"""The sections of a model's page, as HTML."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from fastvae.callbacks.base import History
from fastvae.kernels import Array
from fastvae.report import explorer as explorers
from fastvae.report.charts import Series, bar_chart, is_number, line_chart, number, scatter_svg, with_error
from fastvae.report.explorer import Start, data_uri, latent_frame
from fastvae.report.pictures import comparison_grid, grid
from fastvae.report.subject import Subject, shown_dimensions
from fastvae.report.tables import configuration_lists, duration, history_table

__all__ = ["CURVES", "final_figures", "sections", "unit_range"]

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
_MAX_BARS, _MAX_LINES = 100, 8
_PROFILES = 6
_STARTS = 10
# Of a picture, as the model has them: of larger images fewer are shown.
_MAX_PIXELS = 1_000_000
# What a page has besides the sections counted.
_REST_BYTES = 200_000


def sections(subject: Subject) -> list[tuple[str, str, str]]:
    """Return name, title and content of each section of a page; what does not apply is left out."""
    curves, latents, scatter = _curves(subject), _latents(subject), _scatter(subject)
    pictures, history = _pictures(subject), history_table(subject)
    used = sum(map(len, (curves, latents, scatter, pictures, history)))
    reason = explorers.left_out(subject.model, room=explorers.MAX_PAGE_BYTES - used - _REST_BYTES)
    explorer = _explorer(subject) if reason is None else f"<p class=note>The explorer is left out. {reason}</p>"
    if reason is None and subject.model.network_.latent_dim == 2:
        scatter = ""  # the explorer's plane shows it
    parts = (
        ("explorer", "Explorer", explorer),
        ("curves", "Curves and throughput", curves),
        ("latents", "Latent space", f"<div class=charts>{scatter}{latents}</div>" if scatter + latents else ""),
        ("pictures", "Reconstructions and samples", pictures),
        ("configuration", "Configuration and machine", configuration_lists(subject)),
        ("history", "History", history),
    )
    return [part for part in parts if part[2]]


def final_figures(subject: Subject) -> list[tuple[str, str, str]]:
    """Return value, unit and explanation of the figures at the head of a page, the most important first."""
    state, history, figures = subject.model.state_, subject.model.history_, []
    if subject.bound is not None:
        found = subject.bound.summary()
        figures.append(
            (
                with_error(found["elbo"], found["elbo_standard_error"]),
                "nats per datapoint",
                f"{subject.named('bound (ELBO)')} of {found['n_rows']:,} rows, {found['n_draws']} draws of z each; "
                "± is the standard error over rows",
            )
        )
        figures.append((number(found["kl"]), "nats", "KL divergence of q(z|x) from the prior"))
        active, every = found["active_units"], subject.model.network_.latent_dim
        figures.append((f"{active:,} of {every:,}", "latent dimensions", "active: their posterior mean varies"))
    else:
        for title, unit, train, test, digits in CURVES:
            for column, part in ((test, "test"), (train, "train")):
                values = [v for v in history.get(column, ()) if is_number(v)]
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
    history, model = subject.model.history_, subject.model
    # the bound that training ascends, where it is not the one of the test rows
    ascended = f"train, importance-weighted, {model.n_draws} draws" if model.estimator_ == "iwae" else "train"
    charts = []
    for title, unit, train, test, digits in CURVES:
        series = [
            Series(name, history["epoch"], history[column], style)
            for name, column, style in (
                (ascended if train in ("elbo", "log_px", "kl") else "train", train, "s1"),
                ("test", test, "s0"),
            )
            if any(map(is_number, history.get(column, ())))
        ]
        if series:
            limits = unit_range(test, subject.model.network_.latent_dim)
            charts.append(line_chart(title, series, x_label="epoch", unit=unit, digits=digits, y_range=limits))
    if not charts:
        return "<p class=note>No epoch is complete yet.</p>"
    if any(history.get("kl_per_dimension", ())):
        charts.append(_kl_curves(history))
    speeds = history["samples_per_second"]
    series, limits = [Series("training", history["epoch"], speeds, "s0")], (0.0, 1.08 * max(speeds))
    charts.append(line_chart("Throughput", series, x_label="epoch", unit="samples/s", digits=0, y_range=limits))
    told = (
        "Train: means over an epoch's minibatches while it trained. Test: taken after it. Throughput is that of the "
        "engine, without evaluation and checkpoints."
    )
    return f"<div class=charts>{''.join(charts)}</div><p class=note>{told}</p>"


def _kl_curves(history: History) -> str:
    """Draw the KL divergence of the latent dimensions that are most used in the end, epoch by epoch."""
    known = [(epoch, kl) for epoch, kl in zip(history["epoch"], history["kl_per_dimension"], strict=True) if kl]
    epochs, last = [epoch for epoch, _ in known], known[-1][1]
    order = np.argsort(-np.array(last), kind="stable")[:_MAX_LINES].tolist()
    series = [Series(f"z{j}", epochs, [kl[j] for _, kl in known], f"s{i}") for i, j in enumerate(order)]
    unit = "nats per datapoint" + ("" if len(last) <= _MAX_LINES else f", the {_MAX_LINES} most used of {len(last):,}")
    return line_chart("KL divergence by dimension, test", series, x_label="epoch", unit=unit)


def _latents(subject: Subject) -> str:
    parts = []
    if (kl := subject.kl_per_dimension) is not None:
        order = np.argsort(-kl, kind="stable")[:_MAX_BARS]
        names = [f"z{j}" for j in order.tolist()]
        title = "KL divergence of each dimension"
        if len(kl) > len(order):
            title = f"KL divergence of the {_MAX_BARS} most used of {len(kl):,} dimensions"
        parts.append(bar_chart(title, names, kl[order].tolist(), x_label="latent dimension", unit="nats per datapoint"))
    if subject.model.network_.latent_dim == 2 and subject.image_shape is not None:
        side = min(20, max(2, math.isqrt(_MAX_PIXELS // subject.model.n_features_in_)))
        picture = grid(subject.model.manifold(side), subject.image_shape, columns=side, ground=np.nan, side=28)
        told = (
            f"Means of p(x|z) on a grid of {side} × {side} codes, even in the prior's probability: z0 rises to the "
            "right, z1 upwards."
        )
        parts.append(_picture(picture, "Manifold", told, " large"))
    return "".join(parts)


def _scatter(subject: Subject) -> str:
    if subject.codes is None or subject.model.network_.latent_dim == 1:
        return ""
    first, second = shown_dimensions(subject.codes, subject.kl_per_dimension)
    codes = subject.codes[:, [first, second]]
    labels = None if subject.labels is None else subject.labels[: len(codes)]
    frame = latent_frame(codes)
    inside = scatter_svg(codes, labels, frame, x_label=_z(first), y_label=_z(second))
    rows = subject.named("rows")
    what = f"Posterior means of {len(codes):,} {rows}" + ("" if labels is None else ", by label")
    more = "" if subject.model.network_.latent_dim == 2 else ", the two most used dimensions"
    return (
        f"<figure class=chart><figcaption><b>{what}</b>"
        f"<span class=unit>z{first} and z{second}{more}</span></figcaption>"
        f"<svg viewBox='0 0 {frame.width:g} {frame.height:g}' role=img "
        f"aria-label='{what}: z{first} to the right, z{second} upwards'>{inside}</svg></figure>"
    )


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
    count = min(60, max(10, _MAX_PIXELS // subject.model.n_features_in_ // 10 * 10))
    if subject.pairs is not None:
        pairs = comparison_grid([rows[:count] for rows in subject.pairs], shape, ground=np.nan)
        told = f"{subject.named('rows').capitalize()} above, what the model makes of them below, line by line."
        parts.append(_picture(pairs, "Reconstructions", told))
    samples = grid(subject.model.sample(count), shape, ground=np.nan)
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
                subject.named(f"row {i}").capitalize(),
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
            subject.named(f"row {i}") + ("" if labels is None else f", label {labels[i]}"),
            codes[i],
            None if shape is None else (row.reshape(shape) - low) / (high - low),
        )
        for i, row in zip(chosen, seen, strict=True)
    ]
