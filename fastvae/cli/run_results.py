"""What a finished run leaves: its figures, pictures and report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastvae import backends
from fastvae.cli.options import note

if TYPE_CHECKING:
    from fastvae.cli.session import Session
    from fastvae.data import Split
    from fastvae.evaluation import Bound
    from fastvae.model import Model

__all__ = ["write_results"]

REPORT = "report.html"


def write_results(session: Session) -> dict[str, Any]:
    """Measure the bounds, draw the pictures and return the run's figures."""
    from fastvae import __version__

    model, state, split = session.model, session.model.state_, session.split
    measured, bound = _bounds(model, split) if session.kind.has_bound else (_last_epoch(session), None)
    engine = backends.load(model.backend)
    values = {
        **measured,
        "algorithm": model.algorithm,
        "training_estimator": model.estimator_ if model.algorithm == "aevb" else None,
        "training_draws": model.n_draws,
        "samples_per_second": state.samples / max(state.seconds, 1e-9),
        "seconds": state.seconds,
        "steps": model.n_steps_,
        "epochs": state.epochs_closed,
        "data": session.source["data"],
        "n_train": split.train.n_rows,
        "n_test": 0 if split.test is None else split.test.n_rows,
        "backend": engine.NAME,
        "isa": backends.isa_level(engine),
        "precision": model.precision,
        "threads": model.n_threads or backends.default_threads(),
        "seed": model.seed_,
        "version": __version__,
        "checkpoint": str(session.checkpointing.newest),
        "out": str(session.folder),
        "report": str(session.folder.path / REPORT),
    }
    session.folder.write("result.json", json.dumps(values, indent=2) + "\n")
    del split
    _draw(session, bound)
    return values


def _bounds(model: Model, split: Split) -> tuple[dict[str, Any], Bound]:
    """Measure the bounds of both parts of the data, and return the one for the report too."""
    from fastvae.evaluation import draws_for

    bound = model.evaluate(split.train, n_draws=draws_for("train"))
    train, test = bound.summary(), None
    if split.test is not None:
        bound = model.evaluate(split.test, n_draws=draws_for("test"))
        test = bound.summary()
    shown = test or train
    return {
        "elbo_train": train["elbo"],
        "elbo_test": None if test is None else test["elbo"],
        "elbo_standard_error": shown["elbo_standard_error"],
        "log_px_z": shown["log_px_z"],
        "kl": shown["kl"],
        "active_units": shown["active_units"],
        "evaluation_draws": shown["n_draws"],
        "evaluation_draws_train": train["n_draws"],
        "estimator": shown["estimator"],
        "treatment": shown["treatment"],
    }, bound


def _last_epoch(session: Session) -> dict[str, Any]:
    """Return what an algorithm without a bound reported of its last epoch."""
    return {f"{name}_train": session.model.history_[name][-1] for name in session.kind.statistics}


def _draw(session: Session, bound: Bound | None) -> None:
    from fastvae.data.labels import known_labels
    from fastvae.report import comparison_grid, grid, write_png
    from fastvae.report.page import write_subject
    from fastvae.report.subject import of_run

    model, folder = session.model, session.folder.path
    part = "train" if session.split.test is None else "test"
    rows = session.split.train if session.split.test is None else session.split.test
    del session.split  # so that the pictures do not come on top of the training set
    if (shape := model.image_shape_) is None:
        note("the rows are no images, so no pictures were drawn")
    else:
        first = rows.select(slice(min(50, rows.n_rows)))
        if session.kind.encodes:
            pairs = comparison_grid([first.as_seen(), model.reconstruct(first)], shape)
            write_png(folder / "reconstructions.png", pairs)
        write_png(folder / "samples.png", grid(model.sample(100), shape))
    labels = known_labels(rows, split=part, data_dir=session.data_dir)
    known = {"dataset": rows, "split": part, "labels": labels, "bound": bound}
    write_subject(folder / REPORT, of_run(folder, model, {"run": session.metadata()}, **known))
