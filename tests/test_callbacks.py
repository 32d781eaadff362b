"""The controls of training: what each does, that it survives interruption, and that it changes nothing else."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tqdm
from interruption import StopAt
from sklearn.base import clone

from fastvae import VAE
from fastvae.callbacks import (
    Callback,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    EpochMetrics,
    JSONLogger,
    KLAnneal,
    LearningRateSchedule,
    Progress,
    Rollback,
    TensorBoard,
    TerminateOnNaN,
)
from fastvae.checkpoint import list_checkpoints
from fastvae.errors import CheckpointError, DivergenceError
from fastvae.kernels import Array

ALGORITHMS: dict[str, dict[str, Any]] = {
    "aevb": {},
    "iwae": {"estimator": "iwae", "n_draws": 3},
    "wake-sleep": {"algorithm": "wake-sleep"},
    "mcem": {"algorithm": "mcem"},
    "full-vb": {"algorithm": "full-vb"},
    "autoencoder": {"algorithm": "autoencoder"},
}
DIVERGING = {"optimizer": "sgd", "learning_rate": 30.0, "n_epochs": 5}


def make_rows() -> Array:
    return np.random.default_rng(4).integers(0, 256, (53, 11), dtype=np.uint8)


HELD_OUT = make_rows()[8::-1].copy()


def make_vae(**changes: Any) -> VAE:
    settings: dict[str, Any] = {
        "latent_dim": 2,
        "hidden_dims": (8,),
        "batch_size": 10,  # five steps an epoch
        "n_epochs": 3,
        "learning_rate": 0.05,
        "random_state": 9,
        "backend": "reference",
    }
    return VAE(**settings | changes)


def without_times(history: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: column for name, column in history.items() if name not in ("seconds", "samples_per_second")}


def assert_same_run(comp: VAE, ref: VAE) -> None:
    np.testing.assert_array_equal(comp.params_, ref.params_)
    np.testing.assert_array_equal(comp.state_.slots, ref.state_.slots)
    assert comp.state_.extra.keys() == ref.state_.extra.keys()
    for name, part in ref.state_.extra.items():
        np.testing.assert_array_equal(comp.state_.extra[name], part, err_msg=name)
    assert comp.n_steps_ == ref.n_steps_
    assert without_times(comp.history_) == without_times(ref.history_)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_controls_that_change_nothing_change_no_bit(compiled: str, tmp_path: Path, name: str) -> None:
    settings = ALGORITHMS[name] | {"backend": compiled}
    ref = make_vae(**settings).fit(make_rows())
    controls = [
        Checkpoint(tmp_path / "run", every=2),
        CSVLogger(tmp_path / "history.csv"),
        JSONLogger(tmp_path / "history.jsonl"),
        TensorBoard(tmp_path / "events"),
        Progress(io.StringIO()),
        EarlyStopping(patience=99),
        LearningRateSchedule(lambda step: 1.0, every=2),
        Rollback(),
    ]

    comp = make_vae(**settings, callbacks=controls).fit(make_rows())

    assert_same_run(comp, ref)


def test_a_schedule_without_effect_reaches_the_same_bits_where_the_kl_divergence_is_weighed(compiled: str) -> None:
    ref = make_vae(kl_warmup=9, backend=compiled).fit(make_rows())
    comp = make_vae(callbacks=[KLAnneal.linear(9, every=1)], backend=compiled).fit(make_rows())
    assert_same_run(comp, ref)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_learning_rate_by_epochs_is_that_of_as_many_runs(compiled: str, name: str) -> None:
    settings, factors = ALGORITHMS[name] | {"backend": compiled}, (1.0, 0.5, 0.125)
    ref = make_vae(**settings, n_epochs=1).fit(make_rows())
    for epoch, factor in enumerate(factors[1:], start=2):
        ref.set_params(n_epochs=epoch, learning_rate=0.05 * factor).resume(make_rows())

    comp = make_vae(**settings, callbacks=[LearningRateSchedule(lambda epoch: factors[epoch])]).fit(make_rows())

    assert_same_run(comp, ref)
    assert comp.history_["learning_rate"] == [0.05, 0.025, 0.00625]
    assert comp.optimizer_.learning_rate == 0.05


def test_a_learning_rate_by_steps_holds_from_the_step_that_it_is_of(compiled: str) -> None:
    schedule = LearningRateSchedule(lambda step: 1 / (1 + step), every=3)
    ref = make_vae(backend=compiled, learning_rate=0.05)
    for stop in range(3, 16, 3):
        ref.set_params(callbacks=[StopAt(stop)], learning_rate=0.05 * (1 / (1 + stop - 3)))
        with pytest.warns(UserWarning, match=f"interrupted after step {stop}"):
            (ref.fit if stop == 3 else ref.resume)(make_rows())

    comp = make_vae(backend=compiled, callbacks=[schedule]).fit(make_rows())

    assert_same_run(comp, ref)
    np.testing.assert_allclose(comp.history_["learning_rate"], [0.05 / 4, 0.05 / 10, 0.05 / 13], rtol=1e-12)


def test_the_weight_of_the_kl_divergence_by_epochs_is_that_of_as_many_runs(compiled: str) -> None:
    ref = make_vae(backend=compiled, n_epochs=1, kl_weight=0.25).fit(make_rows())
    for epoch in (2, 3):
        ref.set_params(n_epochs=epoch, kl_weight=0.25 * epoch).resume(make_rows())

    anneal = KLAnneal(lambda epoch: 0.5 * (epoch + 1))
    comp = make_vae(backend=compiled, kl_weight=0.5, callbacks=[anneal]).fit(make_rows())

    assert_same_run(comp, ref)
    assert comp.history_["kl_weight"] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LearningRateSchedule.step(2, 0.1), [1, 1, 0.1, 0.1, 0.01]),
        (LearningRateSchedule.exponential(0.5), [1, 0.5, 0.25, 0.125, 0.0625]),
        (LearningRateSchedule.cosine(4, 0.2), [1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5), 0.2]),
        (LearningRateSchedule.cosine(2, 0.5), [1, 0.75, 0.5, 0.5, 0.5]),
        (LearningRateSchedule.warmup(4, every=None), [0.25, 0.5, 0.75, 1, 1]),
        (KLAnneal.linear(2), [0, 0.5, 1, 1, 1]),
        (KLAnneal.linear(2, 0.5), [0.5, 0.75, 1, 1, 1]),
        (KLAnneal.sigmoid(4, 8), [1 / (1 + np.exp(4 - 2 * t)) for t in range(5)]),
        (KLAnneal.cyclical(4), [0, 0.5, 1, 1, 0]),
    ],
)
def test_the_named_schedules(schedule: Any, expected: list[float]) -> None:
    np.testing.assert_allclose([schedule.value(epoch, 0) for epoch in range(5)], expected, rtol=1e-12)
    assert schedule.next_stop(7) is None


def test_a_steep_sigmoid_is_a_step() -> None:
    anneal = KLAnneal.sigmoid(10, 1e5)
    assert [anneal.value(epoch, 0) for epoch in (0, 4, 5, 6, 10)] == [0, 0, 0.5, 1, 1]


def test_a_model_with_callbacks_is_cloned_and_pickled(tmp_path: Path) -> None:
    controls = [
        LearningRateSchedule.cosine(3),
        KLAnneal.sigmoid(3),
        EarlyStopping(patience=1, restore_best=True),
        Rollback(),
        Checkpoint(tmp_path / "run"),
        CSVLogger(tmp_path / "history.csv"),
        JSONLogger(tmp_path / "history.jsonl"),
        TensorBoard(tmp_path / "events"),
        Progress(),
    ]
    model = make_vae(callbacks=controls).fit(make_rows())
    assert clone(make_vae(callbacks=[Progress(sys.stdout)])).callbacks[0].stream is sys.stdout

    comp = pickle.loads(pickle.dumps(model))

    np.testing.assert_array_equal(comp.params_, model.params_)
    assert len(clone(model).callbacks) == len(controls)


def test_a_schedule_by_steps_stops_the_engine_only_where_it_changes() -> None:
    warmup = LearningRateSchedule.warmup(10, every=4)
    steps = (0, 3, 4, 8, 11, 12)
    assert [warmup.value(0, step) for step in steps] == [0.1, 0.1, 0.5, 0.9, 0.9, 1]
    assert [warmup.next_stop(step) for step in steps] == [4, 4, 8, 12, 12, None]


# What stops, schedules and rolls back, each with something to remember when it is cut.
STATEFUL: dict[str, Callable[[], dict[str, Any]]] = {
    "early stopping": lambda: {
        "n_epochs": 30,
        "learning_rate": 0.5,
        "callbacks": [EarlyStopping(patience=2, restore_best=True)],
    },
    "schedules": lambda: {
        "callbacks": [
            LearningRateSchedule.warmup(7, every=2),
            LearningRateSchedule.exponential(0.5),
            KLAnneal.cyclical(6, every=4),
        ]
    },
    "rollback": lambda: DIVERGING | {"callbacks": [Rollback(0.1)]},
    "all": lambda: (
        DIVERGING
        | {
            "callbacks": [
                EarlyStopping("log_px", patience=2, restore_best=True),
                Rollback(0.1),
                LearningRateSchedule.step(2, 0.5),
                KLAnneal.linear(3),
            ]
        }
    ),
}


@pytest.mark.filterwarnings("ignore:training diverged", "ignore:training was interrupted")
@pytest.mark.parametrize("name", STATEFUL)
def test_every_checkpoint_of_a_controlled_run_leads_to_the_same_end(compiled: str, tmp_path: Path, name: str) -> None:
    """As after SIGKILL at every step, those that a rollback made again included."""

    def make() -> VAE:
        return make_vae(**STATEFUL[name]() | {"backend": compiled})

    ref, saving = make().fit(make_rows(), eval_set=HELD_OUT), make()
    paths: list[Path] = []

    def keep_all(model: Any) -> None:
        paths.append(tmp_path / f"{len(paths)}.safetensors")
        model.save(paths[-1])

    saving.callbacks.append(Checkpoint(tmp_path, every=1, on_saved=keep_all))
    assert_same_run(saving.fit(make_rows(), eval_set=HELD_OUT), ref)
    assert len(paths) >= 16

    for path in paths:
        comp = make().fit(make_rows(), eval_set=HELD_OUT, resume=path)
        assert_same_run(comp, ref)
        assert comp.state_.to_metadata()["memory"] == ref.state_.to_metadata()["memory"]


def test_a_checkpoint_has_what_callbacks_after_it_remember(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "min_seconds", 0.0)

    class Count(Callback):
        def after_epoch(self, model: Any, epoch: int, history: Any) -> None:
            self.memory["epochs"] = epoch

    make_vae(callbacks=[Checkpoint(tmp_path, keep=9), Count()]).fit(make_rows())

    for path in list_checkpoints(tmp_path)[1:]:
        model = VAE.load(path)
        assert model.state_.memory["Count"] == {"epochs": model.n_steps_ // 5}


@pytest.mark.filterwarnings("ignore:training diverged", "ignore:training was interrupted")
@pytest.mark.parametrize("name", STATEFUL)
def test_a_controlled_run_that_ctrl_c_cuts_in_a_callback_ends_the_same(tmp_path: Path, name: str) -> None:
    """Ctrl-C comes before a control has looked at an epoch, whose row is there."""

    class Cut(Callback):
        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

        def after_epoch(self, model: Any, epoch: int, history: Any) -> None:
            if epoch == self.epoch:
                raise KeyboardInterrupt

    ref = make_vae(**STATEFUL[name]()).fit(make_rows(), eval_set=HELD_OUT)
    for epoch in (1, 2, 3):
        settings = STATEFUL[name]()
        folder = tmp_path / str(epoch)
        cut = make_vae(**settings | {"callbacks": [Cut(epoch), *settings["callbacks"], Checkpoint(folder)]})
        cut.fit(make_rows(), eval_set=HELD_OUT)

        comp = make_vae(**STATEFUL[name]()).fit(make_rows(), eval_set=HELD_OUT, resume=folder)

        assert_same_run(comp, ref)


SCRIPT = """
import sys
import numpy as np
from fastvae import VAE
from fastvae.callbacks import *

rows = np.random.default_rng(4).integers(0, 256, (53, 11), dtype=np.uint8)
model = VAE(
    2, hidden_dims=(8,), batch_size=10, n_epochs=300, random_state=9, optimizer="sgd", learning_rate=30.0,
    callbacks=[
        EarlyStopping("log_px", patience=300, restore_best=True), Rollback(0.1), KLAnneal.cyclical(50),
        LearningRateSchedule.step(100, 0.5), Checkpoint(sys.argv[1], every=37),
    ],
)
model.fit(rows, resume=sys.argv[1])
"""


def test_a_controlled_run_that_is_killed_ends_in_the_same_weights(tmp_path: Path) -> None:
    def start(folder: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-P", "-c", SCRIPT, tmp_path / folder], stderr=subprocess.DEVNULL)

    assert start("ref").wait(60) == 0
    process = start("run")
    while len(list_checkpoints(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait(10)
    killed_at = VAE.load(tmp_path / "run").n_steps_
    assert start("run").wait(60) == 0

    comp, ref = VAE.load(tmp_path / "run"), VAE.load(tmp_path / "ref")
    assert killed_at < ref.n_steps_, "it ran to its end: nothing was killed"
    assert_same_run(comp, ref)


@pytest.mark.parametrize("restore_best", [False, True])
def test_early_stopping_ends_after_its_patience_and_has_the_best_parameters(compiled: str, restore_best: bool) -> None:
    stopping = EarlyStopping(patience=3, restore_best=restore_best)
    settings: dict[str, Any] = {"backend": compiled, "n_epochs": 40}

    comp = make_vae(**settings, callbacks=[stopping]).fit(make_rows(), eval_set=HELD_OUT)

    bounds = comp.history_["elbo_test"]
    best = int(np.argmax(bounds)) + 1
    assert len(bounds) == best + 3 < 40
    last = best if restore_best else best + 3
    ref = make_vae(**settings | {"n_epochs": last}).fit(make_rows(), eval_set=HELD_OUT)
    np.testing.assert_array_equal(comp.params_, ref.params_)

    # Once more it has nothing to do; with more patience it goes on from the last epoch's parameters.
    before = comp.params_.copy()
    comp.resume(make_rows(), eval_set=HELD_OUT)
    assert (comp.n_steps_, len(comp.history_["epoch"])) == (5 * (best + 3), best + 3)
    np.testing.assert_array_equal(comp.params_, before)
    comp.set_params(n_epochs=best + 5, callbacks=[EarlyStopping(patience=99)]).resume(make_rows(), eval_set=HELD_OUT)
    ref = make_vae(**settings | {"n_epochs": best + 5}).fit(make_rows(), eval_set=HELD_OUT)
    assert comp.history_["elbo"] == ref.history_["elbo"]


def test_early_stopping_begins_anew_after_a_session_without_it() -> None:
    stopping = EarlyStopping("epoch", mode="min", patience=1, restore_best=True)  # the first epoch is the best
    model = make_vae(callbacks=[stopping]).fit(make_rows())
    assert model.history_["epoch"] == [1, 2]
    model.set_params(callbacks=None).resume(make_rows())
    params = model.params_.copy()

    model.set_params(callbacks=[stopping]).resume(make_rows())

    np.testing.assert_array_equal(model.params_, params)
    model.set_params(n_epochs=9).resume(make_rows())
    assert model.history_["epoch"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change", [{"monitor": "epoch", "mode": "min"}, {"mode": "max"}, {"monitor": "kl"}, {"restore_best": False}]
)
def test_early_stopping_begins_anew_when_it_looks_at_something_else(change: dict[str, Any]) -> None:
    """From the parameters of the last epoch, not the best."""
    first: dict[str, Any] = {"monitor": "step", "mode": "min", "patience": 1, "restore_best": True}
    model = make_vae(callbacks=[EarlyStopping(**first)]).fit(make_rows())
    assert model.history_["epoch"] == [1, 2]

    model.set_params(n_epochs=4, callbacks=[EarlyStopping(**first | {"patience": 2} | change)]).resume(make_rows())

    assert without_times(model.history_) == without_times(make_vae(n_epochs=4).fit(make_rows()).history_)
    memory = model.state_.memory["EarlyStopping"]
    assert memory["best_epoch"] >= 3
    assert ("parameters" in memory) == change.get("restore_best", True)


def test_early_stopping_counts_only_what_is_better_by_enough() -> None:
    def epochs(values: list[float | None], **settings: Any) -> int:
        measure = EpochMetrics(lambda model: {"value": values[model.state_.epochs_closed]})
        model = make_vae(n_epochs=len(values), callbacks=[EarlyStopping("value", **settings), measure])
        return len(model.fit(make_rows()).history_["epoch"])

    assert epochs([1.0, 2.0, 3.0, 2.9, 2.8], patience=2) == 5
    assert epochs([1.0, 1.4, 1.4, 3.0], patience=2, min_delta=0.5) == 3
    assert epochs([1.0, 2.0, 3.0, 2.9, 2.8], patience=2, mode="min") == 3
    assert epochs([1.0, float("nan"), None, 9.0], patience=2) == 3
    assert epochs([float("nan"), 1.0, 2.0, 3.0], patience=2) == 4


def test_early_stopping_names_a_column_that_is_not_there() -> None:
    model = make_vae(callbacks=[EarlyStopping("elbo_valid")])
    with pytest.raises(ValueError, match="no column elbo_valid to monitor; the history has epoch, step, elbo"):
        model.fit(make_rows())
    # The model is that of the epoch, and goes on.
    assert_same_run(model.set_params(callbacks=None).resume(make_rows()), make_vae().fit(make_rows()))


def test_early_stopping_does_not_take_a_missing_eval_set_for_no_improvement() -> None:
    def make() -> VAE:
        return make_vae(n_epochs=9, callbacks=[EarlyStopping(patience=1)])

    model = make().set_params(n_epochs=1).fit(make_rows(), eval_set=HELD_OUT).set_params(n_epochs=9)
    with pytest.raises(ValueError, match="monitors elbo_test, which needs the eval_set: give it again"):
        model.resume(make_rows())

    model.resume(make_rows(), eval_set=HELD_OUT)

    bounds, ref = model.history_["elbo_test"], make().fit(make_rows(), eval_set=HELD_OUT).history_["elbo_test"]
    assert (bounds[1], bounds[2:]) == (None, ref[2:])


def test_rollback_lowers_the_learning_rate_until_training_goes_on(compiled: str) -> None:
    """The first time within an epoch; then at the end of one, after which no step could be made."""
    model = make_vae(**DIVERGING, backend=compiled, callbacks=[Rollback(0.1)])

    with pytest.warns(UserWarning, match="training diverged") as caught:
        model.fit(make_rows())

    said = [str(warning.message) for warning in caught]
    assert [line.split("; ")[1] for line in said] == [
        "going on from step 0 with the learning rate times 0.1",
        "going on from step 10 with the learning rate times 0.01",
    ]
    assert all(line.startswith("training diverged at step ") for line in said)
    np.testing.assert_allclose(model.history_["learning_rate"], [3, 3, 0.3, 0.3, 0.3])
    assert np.isfinite(model.score(make_rows()))
    assert (model.n_steps_, model.state_.samples) == (25, 250)


@pytest.mark.filterwarnings("ignore:training diverged")
@pytest.mark.parametrize(("times", "epochs"), [(0, 0), (1, 2)])
def test_rollback_has_an_end_and_leaves_the_last_good_state(times: int, epochs: int) -> None:
    model = make_vae(**DIVERGING, callbacks=[Rollback(0.1, times=times)])

    with pytest.raises(DivergenceError, match="no checkpoint was kept"):
        model.fit(make_rows())

    assert (model.n_steps_, model.history_.get("epoch", [])) == (5 * epochs, list(range(1, epochs + 1)))
    assert np.isfinite(model.params_).all()
    if epochs:
        ref = make_vae(**DIVERGING | {"learning_rate": 30.0 * 0.1, "n_epochs": epochs}).fit(make_rows())
        np.testing.assert_array_equal(model.params_, ref.params_)


@pytest.mark.filterwarnings("ignore:training diverged", "ignore:training was interrupted")
def test_rollback_goes_back_no_further_than_the_session_that_lacked_it() -> None:
    model = make_vae(callbacks=[Rollback()], n_epochs=1).fit(make_rows())
    model.set_params(callbacks=[StopAt(12)], n_epochs=3).resume(make_rows())
    kept = model.params_.copy()

    class Poison(StopAt):
        def after_steps(self, model: VAE, step: int) -> None:
            if step == self.step:
                model.params_[:] = np.nan

    model.set_params(callbacks=[Rollback(times=0), Poison(13)])
    with pytest.raises(DivergenceError):
        model.resume(make_rows())

    assert (model.n_steps_, model.history_["step"]) == (12, [5, 10])
    np.testing.assert_array_equal(model.params_, kept)


@pytest.mark.filterwarnings("ignore:training diverged")
def test_rollback_gives_up_where_no_step_can_be_made_at_all() -> None:
    with pytest.raises(DivergenceError, match="diverged at step 0"):
        make_vae(init=1e30, callbacks=[Rollback()]).fit(make_rows())


@pytest.mark.parametrize(("rate", "epochs"), [(30.0, 0), (3.0, 2)])
def test_terminate_on_nan_ends_with_the_last_good_state_and_no_error(
    compiled: str, tmp_path: Path, rate: float, epochs: int
) -> None:
    settings = DIVERGING | {"learning_rate": rate, "backend": compiled}
    model = make_vae(**settings, callbacks=[TerminateOnNaN(), Checkpoint(tmp_path, every=5)])

    message = f"diverged at step .* is not finite; training ends, and the model is that of step {5 * epochs}$"
    with pytest.warns(UserWarning, match=message) as caught:
        model.fit(make_rows())

    assert len(caught) == 1
    rolled = make_vae(**settings, callbacks=[TerminateOnNaN(0.1, times=5)])
    with pytest.warns(UserWarning, match="going on from step"):
        rolled.fit(make_rows())
    assert rolled.history_["epoch"] == [1, 2, 3, 4, 5]
    assert (model.n_steps_, model.history_.get("epoch", [])) == (5 * epochs, list(range(1, epochs + 1)))
    assert np.isfinite(model.score(make_rows()))
    assert VAE.load(tmp_path).n_steps_ == model.n_steps_
    if epochs:
        ref = make_vae(**settings | {"n_epochs": epochs}).fit(make_rows())
        np.testing.assert_array_equal(model.params_, ref.params_)


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's event files: records of length, its checksum, bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    scalars: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):  # where a session begins: what came after that step is void
                scalars = {name: {s: v for s, v in steps.items() if s < event.step} for name, steps in scalars.items()}
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: sorted(steps.items()) for name, steps in scalars.items()}


def test_loggers_have_the_whole_history_after_every_epoch_and_session(tmp_path: Path) -> None:
    def loggers() -> list[Callback]:
        return [
            TensorBoard(tmp_path / "events"),
            CSVLogger(tmp_path / "logs" / "history.csv"),
            JSONLogger(tmp_path / "logs" / "history.jsonl"),
        ]

    lengths = []

    class Count(Callback):
        def after_epoch(self, model: Any, epoch: int, history: Any) -> None:
            lengths.append([len(path.read_text().splitlines()) for path in sorted((tmp_path / "logs").iterdir())])

    model = make_vae(n_epochs=2, callbacks=[*loggers(), Count()]).fit(make_rows())
    # The next session has more columns, and is cut after an epoch that its successor makes again.
    model.save(tmp_path / "saved.safetensors")
    model.set_params(n_epochs=3, callbacks=loggers()).resume(make_rows(), eval_set=HELD_OUT)
    metrics = EpochMetrics(lambda _: {"nothing": float("nan"), "text": "a, b", "numpy": np.float32(0.5)})
    model = VAE.load(tmp_path / "saved.safetensors").set_params(n_epochs=4, callbacks=[*loggers(), metrics, Count()])
    model.resume(make_rows(), eval_set=HELD_OUT)

    assert lengths == [[2, 1], [3, 2], [4, 3], [5, 4]]
    history = model.history_
    rows = [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]
    with (tmp_path / "logs" / "history.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [list(row.values()) for row in table] == [
        ["" if value is None else str(value) for value in row.values()] for row in rows
    ]
    assert list(table[0]) == list(history)
    lines = (tmp_path / "logs" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {name: None if value != value else value for name, value in row.items()} for row in rows
    ]
    events = read_events(tmp_path / "events")
    kl = {f"kl_per_dimension/{j}" for j in range(model.latent_dim)}
    assert events.keys() == history.keys() - {"epoch", "step", "text", "kl_per_dimension"} | kl
    assert [step for step, _ in events["kl_per_dimension/1"]] == [15, 20]
    for name in ("elbo", "kl", "learning_rate"):
        np.testing.assert_allclose(events[name], np.c_[history["step"], history[name]], rtol=1e-6)
    assert [step for step, _ in events["elbo_test"]] == [15, 20]


@pytest.mark.parametrize("kind", [CSVLogger, JSONLogger, TensorBoard, Checkpoint])
def test_a_file_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "file").touch()
    model = make_vae(callbacks=[kind(tmp_path / "file" / "log")])

    with pytest.raises((OSError, CheckpointError), match="file"):
        model.fit(make_rows())

    assert model.n_steps_ == 0


def test_tensorboard_without_its_package_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'fastvae\[tensorboard\]'"):
        TensorBoard("events")


def test_a_column_is_measured_by_one_callback_alone() -> None:
    model = make_vae(callbacks=[EpochMetrics(lambda _: {"step": 1, "radius": 2.0})])
    with pytest.raises(ValueError, match="EpochMetrics measures step, a column that is there"):
        model.fit(make_rows())
    assert_same_run(model.set_params(callbacks=None).resume(make_rows()), make_vae().fit(make_rows()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_a_bar_on_a_terminal_alone() -> None:
    streams = io.StringIO(), Terminal()
    for stream in streams:
        make_vae(callbacks=[Progress(stream)]).fit(make_rows(), eval_set=HELD_OUT)
    plain, shown = (stream.getvalue() for stream in streams)

    assert "\r" not in plain
    assert [line.split("  ")[0] for line in plain.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("elbo -" in line and line.endswith("samples/s") for line in plain.splitlines())
    assert "/15 [" in shown  # steps of all, and then the time gone and left
    assert ", elbo -" in shown
    for line in plain.splitlines():
        assert line.split("samples")[0].rsplit("  ", 1)[0] in shown


def test_progress_without_the_bar_that_tqdm_was_told_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # tqdm reads TQDM_DISABLE when it is imported, as a default of this argument.
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, disable=True))
    stream = Terminal()
    make_vae(callbacks=[Progress(stream)]).fit(make_rows())
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_fit_with_resume_is_begun_goes_on_and_is_done_by_one_script(tmp_path: Path) -> None:
    def script(*more: Callback) -> VAE:
        model = make_vae(callbacks=[Checkpoint(tmp_path / "run", every=4), *more])
        return model.fit(make_rows(), eval_set=HELD_OUT, resume=tmp_path / "run")

    ref = make_vae().fit(make_rows(), eval_set=HELD_OUT)
    with pytest.warns(UserWarning, match="training was interrupted after step 7") as caught:
        script(StopAt(7))
    assert len(caught) == 1
    newest = list_checkpoints(tmp_path / "run")[-1]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    assert newest.stem.endswith("7")
    with pytest.warns(UserWarning, match="do not match their SHA-256"):
        comp = script()
    assert_same_run(comp, ref)

    class Never(Callback):
        def after_steps(self, model: Any, step: int) -> None:
            raise AssertionError("a step was made")

    assert_same_run(script(Never()), ref)


def test_fit_with_resume_warns_of_a_fresh_start_that_will_not_be_found_either(tmp_path: Path) -> None:
    for callbacks in (None, [Checkpoint(tmp_path / "run")]):
        with pytest.warns(UserWarning, match="no checkpoint is in .*rum to go on from: training starts afresh"):
            make_vae(callbacks=callbacks).fit(make_rows(), resume=tmp_path / "rum")


def test_fit_with_resume_keeps_no_names_of_an_earlier_fit(tmp_path: Path) -> None:
    ref = make_vae(callbacks=[Checkpoint(tmp_path)]).fit(make_rows())
    comp = make_vae().fit(pd.DataFrame(make_rows(), columns=list("abcdefghijk")))

    comp.fit(make_rows(), resume=tmp_path)

    assert not hasattr(comp, "feature_names_in_")
    np.testing.assert_array_equal(comp.transform(make_rows()), ref.transform(make_rows()))


def test_fit_with_resume_refuses_what_is_another_run(tmp_path: Path) -> None:
    make_vae(callbacks=[Checkpoint(tmp_path)], n_epochs=1).fit(make_rows())

    for change, message in (
        ({"random_state": 8}, "began with random_state 9, not 8"),
        ({"hidden_dims": (7,)}, r"began with encoder_hidden \(8,\), not \(7,\)"),
        ({"batch_size": 9}, "began with batch_size 10, not 9"),
    ):
        model = make_vae(**change)
        with pytest.raises(ValueError, match=message):
            model.fit(make_rows(), resume=tmp_path)
        assert not hasattr(model, "state_")
    with pytest.raises(CheckpointError, match="not the data of the run"):
        make_vae().fit(make_rows()[::-1].copy(), resume=tmp_path)
    for path in list_checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="taking an older"),
        pytest.raises(CheckpointError, match="no valid checkpoint"),
    ):
        make_vae().fit(make_rows(), resume=tmp_path)


def test_a_fresh_run_is_refused_where_another_has_its_checkpoints(tmp_path: Path) -> None:
    make_vae(callbacks=[Checkpoint(tmp_path)], n_epochs=1).fit(make_rows())
    before = [path.read_bytes() for path in list_checkpoints(tmp_path)]

    with pytest.raises(CheckpointError, match="belongs to another run"):
        make_vae(callbacks=[Checkpoint(tmp_path)]).fit(make_rows())

    assert [path.read_bytes() for path in list_checkpoints(tmp_path)] == before


def test_checkpoints_at_begin_every_k_steps_and_end_have_their_rows(compiled: str, tmp_path: Path) -> None:
    for every in (4, 5, 10):
        folder = tmp_path / str(every)
        model = make_vae(backend=compiled, callbacks=[Checkpoint(folder, every=every, keep=99)]).fit(make_rows())

        found = [VAE.load(path) for path in list_checkpoints(folder)]

        assert [each.n_steps_ for each in found] == sorted({*range(0, 16, every), 15})
        assert [len(each.history_.get("epoch", [])) for each in found] == [each.n_steps_ // 5 for each in found]
        assert_same_run(found[-1], model)


def test_a_diverged_state_never_replaces_a_checkpoint(tmp_path: Path) -> None:
    class Poison(Callback):
        def next_stop(self, step: int) -> int | None:
            return 6 if step < 6 else None

        def after_steps(self, model: VAE, step: int) -> None:
            if step == 6:
                model.parameters_["decoder.0.W"][1, 2] = np.nan

    model = make_vae(callbacks=[Checkpoint(tmp_path, every=2, keep=99), Poison()])
    with pytest.raises(DivergenceError, match=r"parameter decoder\.0\.W is not finite.*checkpoint-000000000004"):
        model.fit(make_rows())

    assert [VAE.load(path).n_steps_ for path in list_checkpoints(tmp_path)] == [0, 2, 4]


def test_a_weight_of_one_callback_is_found_too() -> None:
    """Of the object and not of its class."""
    callback = Callback()
    callback.kl_weight = lambda weight, *, epoch, step: 0.5 * weight  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="leave KLAnneal out of callbacks"):
        make_vae(algorithm="wake-sleep", callbacks=[callback]).fit(make_rows())


def test_callbacks_are_checked() -> None:
    for make, message in (
        (lambda: EarlyStopping(patience=0), "patience must be an integer from 1"),
        (lambda: EarlyStopping(mode="auto"), "mode must be one of max, min"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta must be a finite number that is not negative"),
        (lambda: Rollback(1.0), "factor must lie between 0 and 1"),
        (lambda: Checkpoint("x", every=0), "every must be an integer from 1"),
        (lambda: LearningRateSchedule(0.5), "factor must be a function"),  # type: ignore[arg-type]
        (lambda: make_vae(algorithm="mcem", callbacks=[KLAnneal.linear(2)]).fit(make_rows()), "leave KLAnneal out"),
        (lambda: make_vae(callbacks=[LearningRateSchedule(lambda _: 0)]).fit(make_rows()), "learning_rate must lie in"),
        (lambda: make_vae(callbacks=[KLAnneal(lambda _: -1)]).fit(make_rows()), "kl_weight must be a finite number"),
        (
            lambda: make_vae(callbacks=[KLAnneal(lambda _: "1")]).fit(make_rows()),
            "factor of a schedule must be a number",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


INTERRUPTED = """
import signal, sys, time
import numpy as np
from fastvae import VAE
from fastvae.callbacks import Callback, Checkpoint

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts this may have it ignored

class Slow(Callback):
    def after_epoch(self, model, epoch, history):
        if epoch == 1:
            print("training", flush=True)
    def after_training(self, model, error):
        print("ending", flush=True)
        time.sleep(float(sys.argv[2]))

rows = np.random.default_rng(0).integers(0, 256, (600, 40), dtype=np.uint8)
model = VAE(2, hidden_dims=(32,), n_epochs=10**6, random_state=0, callbacks=[Slow(), Checkpoint(sys.argv[1])])
assert model.fit(rows) is model
print("kept", model.n_steps_, np.isfinite(model.score(rows)), VAE.load(sys.argv[1]).n_steps_, flush=True)
model.set_params(n_epochs=len(model.history_["epoch"]) + 1, callbacks=None).resume(rows)
"""


@pytest.mark.parametrize("twice", [False, True])
def test_the_first_ctrl_c_keeps_the_model_and_the_second_aborts(tmp_path: Path, twice: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", INTERRUPTED, tmp_path, "60" if twice else "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    assert time.monotonic() - begin < 2  # 0.2 s on a quiet machine
    if twice:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    if twice:
        assert process.returncode == -signal.SIGINT
        assert (out, err.splitlines()[-1]) == ("", "KeyboardInterrupt")
        return
    assert process.returncode == 0, err
    kept, step, finite, saved = out.split()
    assert (kept, finite, saved) == ("kept", "True", step)
    assert err.count("UserWarning") == 1
    assert f"UserWarning: training was interrupted after step {step}: the model is that of this step" in err
    assert "resume(X) goes on" in err
