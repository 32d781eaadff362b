"""The loop: chunks, epochs, callbacks, interruption and divergence, on every engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastvae import backends
from fastvae.callbacks import Callback, CSVLogger, EpochMetrics, LearningRateSchedule
from fastvae.checkpoint import Checkpoint
from fastvae.data import Dataset, as_dataset
from fastvae.errors import DivergenceError
from fastvae.kernels import Array, Plan
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer
from fastvae.rng import epoch_order
from fastvae.training import loop
from fastvae.training.aevb import AEVB, Buffers
from fastvae.training.algorithm import algorithm_class
from fastvae.training.composed import Composed
from fastvae.training.interrupts import Interrupted
from fastvae.training.state import State, append_row, fingerprint
from fastvae.training.step import compose_step

NETWORK = Network(data_dim=9, latent_dim=2, encoder_hidden=(7,), decoder_hidden=(5,))
N_ROWS, BATCH, EPOCHS = 33, 8, 3  # four steps an epoch, one row left out
SEED = 11


def make_data(n_rows: int = N_ROWS) -> Dataset:
    levels = np.random.default_rng(0).integers(0, 256, (n_rows, NETWORK.data_dim), dtype=np.uint8)
    return as_dataset(levels)


def make_algorithm(
    plan: Plan, *, dataset: Dataset | None = None, estimator: str = "sgvb-b", **changes: Any
) -> Composed[Any]:
    settings: dict[str, Any] = {
        "optimizer": Optimizer("adam", learning_rate=0.01),
        "binarize": "none",
        "seed": SEED,
        "kl_weight": 1.0,
        "kl_warmup": 5,
        "decay": 0.0,
    }
    kind = algorithm_class("aevb", estimator)
    return kind(backends.load("reference"), plan, dataset=dataset or make_data(), **settings | changes)


def make_state(algorithm: Composed[Any]) -> State:
    params = initialise(NETWORK, seed=SEED)
    return State(params, np.zeros((algorithm.optimizer.n_slots, params.size), np.float32))


def as_model(state: State) -> Any:
    """As little of a model as the loop itself looks at."""
    return SimpleNamespace(state_=state)


def run(algorithm: Any, state: State, **changes: Any) -> State:
    settings = {"n_rows": N_ROWS, "batch_size": BATCH, "n_epochs": EPOCHS} | changes
    loop.run_epochs(as_model(state), algorithm, **settings)
    return state


def without_times(history: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: column for name, column in history.items() if name not in ("seconds", "samples_per_second")}


def assert_same(comp: State, ref: State) -> None:
    np.testing.assert_array_equal(comp.params, ref.params)
    np.testing.assert_array_equal(comp.slots, ref.slots)
    assert (comp.step, comp.samples) == (ref.step, ref.samples)
    assert without_times(comp.history) == without_times(ref.history)


class Recorder:
    """An algorithm that only writes down its minibatches; the bound of step t is (t, 2 t)."""

    seed = SEED
    statistics = ("log_px", "kl")
    optimizer, kl_weight = Optimizer(), 1.0
    plan = backends.load("reference").plan(NETWORK, rows=BATCH, draws=1, precision="fp32", n_threads=1)

    def __init__(self) -> None:
        self.batches: list[tuple[int, Array]] = []
        self.lengths: list[int] = []

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        self.lengths.append(len(order))
        self.batches += [(state.step + i, index.copy()) for i, index in enumerate(order)]
        stats[:, 0] = state.step + np.arange(len(order))
        stats[:, 1] = 2 * stats[:, 0]
        done[0] = len(order)

    def history_row(self, means: list[float], *, step: int) -> dict[str, Any]:
        log_px, kl = means
        return {"elbo": log_px - kl, "log_px": log_px, "kl": kl, "kl_weight": float(step)}


class Stop(Callback):
    """Ctrl-C between two chunks, at a chosen step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def next_stop(self, step: int) -> int | None:
        return self.step if self.step > step else None

    def after_steps(self, model: Any, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def bare_state() -> State:
    return State(np.zeros(1, np.float32), np.zeros((1, 1), np.float32))


def test_minibatches_are_the_epochs_permutations_without_their_remainder() -> None:
    recorder = Recorder()

    run(recorder, bare_state())

    assert [step for step, _ in recorder.batches] == list(range(12))
    left_out = set()
    for epoch in range(EPOCHS):
        order = epoch_order(N_ROWS, seed=SEED, epoch=epoch)
        ref = order[:32].reshape(4, BATCH)
        np.testing.assert_array_equal([index for _, index in recorder.batches[4 * epoch : 4 * epoch + 4]], ref)
        left_out.add(int(order[32]))
    assert len(left_out) > 1


def test_history_holds_the_means_over_each_epoch() -> None:
    state = run(Recorder(), bare_state())

    assert state.history["epoch"] == [1, 2, 3]
    assert state.history["step"] == [4, 8, 12]
    assert state.history["log_px"] == [1.5, 5.5, 9.5]
    assert state.history["kl"] == [3.0, 11.0, 19.0]
    assert state.history["elbo"] == [-1.5, -5.5, -9.5]
    assert state.history["kl_weight"] == [3.0, 7.0, 11.0]
    assert state.samples == 12 * BATCH
    assert all(rate > 0 for rate in state.history["samples_per_second"])


def test_chunks_end_where_a_callback_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    recorder = Recorder()

    with pytest.raises(KeyboardInterrupt):
        run(recorder, bare_state(), callbacks=[Stop(3), Stop(6)])

    # The first chunk is a single step, to learn how long one takes.
    assert recorder.lengths == [1, 2]


@pytest.mark.parametrize("chunk_seconds", [0.0, 1e9])
def test_chunk_length_does_not_change_the_result(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, chunk_seconds: float
) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))
    monkeypatch.setattr(loop, "CHUNK_SECONDS", chunk_seconds)

    comp = run(algorithm, make_state(algorithm))

    assert_same(comp, ref)


class Rows(Callback):
    """Writes down how many rows the history has whenever it is told of one."""

    def __init__(self, *, every_epoch: bool) -> None:
        self.every_epoch = every_epoch
        self.calls: list[tuple[int, int, int]] = []

    def after_epoch(self, model: Any, epoch: int, history: dict[str, list[Any]]) -> None:
        self.calls.append((epoch, len(history["epoch"]), model.state_.step))


def test_epochs_are_made_at_once_where_nobody_looks_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    apart, together, ref, comp = Recorder(), Recorder(), Rows(every_epoch=True), Rows(every_epoch=False)

    one_by_one = run(apart, bare_state(), callbacks=[ref, Rows(every_epoch=False)])
    at_once = run(together, bare_state(), callbacks=[comp])

    assert apart.lengths == [1, 3, 4, 4]
    assert ref.calls == [(1, 1, 4), (2, 2, 8), (3, 3, 12)]
    assert together.lengths == [1, 3, 8]
    assert comp.calls == [(1, 1, 4), (3, 3, 12)]
    np.testing.assert_array_equal([i for _, i in together.batches], [i for _, i in apart.batches])
    assert without_times(at_once.history) == without_times(one_by_one.history)
    assert (at_once.samples, at_once.epoch_samples) == (one_by_one.samples, one_by_one.epoch_samples)
    assert sum(at_once.history["seconds"]) == pytest.approx(at_once.seconds)


@pytest.mark.parametrize(("rows", "lengths"), [(N_ROWS, [1, 3, 4, 4]), (2 * N_ROWS, [1, 3, 8])])
def test_epochs_made_at_once_have_few_enough_rows(
    monkeypatch: pytest.MonkeyPatch, rows: int, lengths: list[int]
) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(loop, "_MAX_CHUNK_ROWS", rows)
    recorder = Recorder()

    run(recorder, bare_state())

    assert recorder.lengths == lengths


@pytest.mark.parametrize("n_done", range(9))
def test_epochs_made_at_once_and_cut_are_closed_and_told(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))
    cut = []

    class Cut(AEVB):
        def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
            if len(order) != 8 or cut:
                return super().advance(state, order=order, stats=stats, done=done)
            cut.append(True)
            super().advance(state, order=order[:n_done], stats=stats[:n_done], done=done)
            raise KeyboardInterrupt

    comp, told = make_state(algorithm), Rows(every_epoch=False)
    with pytest.raises(KeyboardInterrupt):
        run(Cut(**vars(algorithm)), comp, callbacks=[told])
    assert comp.step == 4 + n_done
    assert comp.epochs_closed == (1 if n_done < 5 else 2)  # the last one is for the next session, as its row's columns
    assert [rows for _, rows, _ in told.calls] == ([1] if n_done < 5 else [1, 2])
    run(algorithm, comp)

    assert_same(comp, ref)


@pytest.mark.parametrize("n_good", range(13))
def test_divergence_leaves_the_same_history_in_any_chunk(monkeypatch: pytest.MonkeyPatch, n_good: int) -> None:
    class Diverging(Recorder):
        def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
            super().advance(state, order=order, stats=stats, done=done)
            done[0] = min(len(order), max(0, n_good - state.step))

        def diagnose(self, state: State, index: Array) -> str:
            return "mu"

    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    ref, comp, told = bare_state(), bare_state(), Rows(every_epoch=False)
    for state, callback in ((ref, Rows(every_epoch=True)), (comp, told)):
        with pytest.raises(DivergenceError, match=f"at step {n_good}: mu is not finite"):
            run(Diverging(), state, n_epochs=4, callbacks=[callback])

    assert comp.history.get("epoch", []) == list(range(1, n_good // 4 + 1))
    assert without_times(comp.history) == without_times(ref.history)
    assert [rows for _, rows, _ in told.calls[-1:]] == [n_good // 4][: n_good // 4]


class Mending(Callback):
    every_epoch = False

    def after_divergence(self, model: Any, error: DivergenceError) -> bool:
        return False


@pytest.mark.parametrize(
    ("callback", "lengths"),
    [
        (Callback(), [1, 3, 8]),
        (Rows(every_epoch=False), [1, 3, 8]),
        (Mending(), [1, 3, 4, 4]),
        (CSVLogger("history.csv"), [1, 3, 8]),
        (LearningRateSchedule.exponential(0.9), [1, 3, 4, 4]),
        (type("Own", (Callback,), {"after_steps": lambda *_: None})(), [1, 3, 4, 4]),
        (type("Own", (CSVLogger,), {"epoch_columns": lambda *_: {"extra": 1}})("history.csv"), [1, 3, 4, 4]),
        (type("Own", (Callback,), {"before_training": lambda *_: None})(), [1, 3, 8]),
    ],
)
def test_training_halts_for_hooks_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, callback: Callback, lengths: list[int]
) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 1e9)
    monkeypatch.chdir(tmp_path)

    class Adjustable(Recorder):
        def adjusted(self, **_: Any) -> Adjustable:
            return self

        def diagnose(self, state: State, index: Array) -> None:
            return None

    recorder, model = Adjustable(), as_model(bare_state())
    model.history_ = model.state_.history

    sizes = {"n_rows": N_ROWS, "batch_size": BATCH, "n_epochs": EPOCHS}
    loop.run_epochs(model, recorder, **sizes, callbacks=[callback])

    assert recorder.lengths == lengths


def test_every_callback_is_told_of_the_end_whatever_it_raised() -> None:
    class Full(Rows):
        ended = False

        def after_epoch(self, model: Any, epoch: int, history: dict[str, list[Any]]) -> None:
            if self.calls:
                raise OSError("disk full")
            super().after_epoch(model, epoch, history)

        def after_training(self, model: Any, error: BaseException | None) -> None:
            self.ended = True

    class Cut(Recorder):
        def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
            super().advance(state, order=order, stats=stats, done=done)
            if len(order) == 8:
                done[0] = 6
                raise KeyboardInterrupt

    callback = Full(every_epoch=False)
    with pytest.raises(OSError, match="disk full"):
        run(Cut(), bare_state(), callbacks=[callback])
    assert callback.ended


@pytest.mark.parametrize("chunk_seconds", [0.0, 1e9])
def test_a_parameter_that_is_lost_is_found_after_the_same_step_in_any_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_seconds: float
) -> None:
    monkeypatch.setattr(loop, "CHUNK_SECONDS", chunk_seconds)

    class Losing(Recorder):
        """Its bound stays finite."""

        def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
            super().advance(state, order=order, stats=stats, done=done)
            if state.step <= 5 < state.step + len(order):
                state.slots[:] = np.inf

    state = bare_state()
    with pytest.raises(DivergenceError, match="at step 8: the optimizer's state is not finite"):
        run(Losing(), state, n_epochs=5)

    assert state.history["epoch"] == [1]
    assert state.samples == 8 * BATCH


def test_the_estimator_reaches_the_engine(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(NETWORK, rows=BATCH)
    algorithm = make_algorithm(plan, estimator="sgvb-a")
    ref, comp = make_state(algorithm), make_state(algorithm)
    order, stats, done = np.arange(BATCH)[np.newaxis], np.empty((1, 2)), np.zeros(1, np.int64)
    algorithm.advance(comp, order=order, stats=stats, done=done)
    expected = compose_step(
        plan,
        Buffers.allocate(NETWORK, BATCH, 1),
        params=ref.params,
        state=ref.slots,
        optimizer=algorithm.optimizer,
        data=algorithm.dataset.rows,
        index=order[0],
        scale=algorithm.dataset.scale,
        binarize="none",
        seed=SEED,
        step=0,
        estimator="sgvb-a",
        kl_weight=0.0,
        decay=0.0,
    )
    np.testing.assert_allclose(stats[0], expected, rtol=1e-5)


@pytest.mark.parametrize("stop", range(1, 13))
def test_stopping_at_any_step_and_going_on_changes_nothing(make_plan: Callable[..., Plan], stop: int) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))

    comp = make_state(algorithm)
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, comp, callbacks=[Stop(stop)])
    assert comp.step == stop
    run(algorithm, comp)

    assert_same(comp, ref)


@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_around_the_engine_leaves_whole_steps(make_plan: Callable[..., Plan], before: bool) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))
    seen = []

    class Interrupted(AEVB):
        def advance(self, state: State, **arguments: Any) -> None:
            interrupt = state.step >= 4 and not seen
            if interrupt:
                seen.append(state.step)
            if interrupt and before:
                os.kill(os.getpid(), signal.SIGINT)
            super().advance(state, **arguments)
            if interrupt:
                os.kill(os.getpid(), signal.SIGINT)

    comp = make_state(algorithm)
    interrupted = Interrupted(**vars(algorithm))
    with pytest.raises(KeyboardInterrupt):
        run(interrupted, comp)
    assert (comp.step == seen[0]) == before  # steps that the engine made are counted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(interrupted, comp)

    assert_same(comp, ref)


def test_steps_done_before_an_engine_raises_are_counted(make_plan: Callable[..., Plan]) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))
    raised = []

    class Raising(AEVB):
        def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
            n = len(order) if raised else 1
            super().advance(state, order=order[:n], stats=stats[:n], done=done)
            if not raised:
                raised.append(True)
                raise KeyboardInterrupt

    comp = make_state(algorithm)
    raising = Raising(**vars(algorithm))
    with pytest.raises(KeyboardInterrupt):
        run(raising, comp)
    assert comp.step == 1
    run(raising, comp)

    assert_same(comp, ref)


def test_an_interrupt_between_an_update_and_its_count_undoes_both() -> None:
    class Interrupting(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            if key == (1, 0):  # the reference has updated and looks at the bound of its second step
                raise KeyboardInterrupt
            return super().__getitem__(key)

    plan = backends.load("reference").plan(NETWORK, rows=BATCH, draws=1, precision="fp32", n_threads=1)
    algorithm = make_algorithm(plan)
    ref, comp = make_state(algorithm), make_state(algorithm)
    order, done = epoch_order(N_ROWS, seed=SEED, epoch=0)[:32].reshape(4, BATCH), np.zeros(1, np.int64)
    algorithm.advance(ref, order=order[:1], stats=np.empty((1, 2)), done=done)

    with pytest.raises(KeyboardInterrupt):
        algorithm.advance(comp, order=order, stats=np.empty((4, 2)).view(Interrupting), done=done)

    assert done[0] == 1
    np.testing.assert_array_equal(comp.params, ref.params)
    np.testing.assert_array_equal(comp.slots, ref.slots)


def test_an_epoch_cut_before_its_row_is_closed_on_resume(make_plan: Callable[..., Plan]) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))

    def interrupt(model: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    comp = make_state(algorithm)
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, comp, callbacks=[EpochMetrics(interrupt)])
    assert comp.step == 4
    assert comp.history == {}
    run(algorithm, comp)

    assert_same(comp, ref)


class Log(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def before_training(self, model: Any, n_steps: int) -> None:
        self.calls.append(("before", n_steps))

    def next_stop(self, step: int) -> int | None:
        return step + 2

    def after_steps(self, model: Any, step: int) -> None:
        self.calls.append(("steps", step, model.state_.epochs_closed))

    def epoch_columns(self, model: Any, epoch: int) -> dict[str, Any]:
        return {"extra": epoch * 10}

    def after_epoch(self, model: Any, epoch: int, history: dict[str, list[Any]]) -> None:
        self.calls.append(("epoch", epoch, history["extra"][-1]))

    def after_training(self, model: Any, error: BaseException | None) -> None:
        self.calls.append(("after", type(error).__name__))


def test_callbacks_are_called_in_order_and_told_the_error() -> None:
    log, cut = Log(), Log()
    run(Recorder(), bare_state(), callbacks=[log], n_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run(Recorder(), bare_state(), callbacks=[cut, Stop(1)], n_epochs=2)

    epoch_ends = [call for call in log.calls if call[0] != "steps" or call[1] % 4 == 0]
    assert epoch_ends == [
        ("before", 8),
        ("epoch", 1, 10),
        ("steps", 4, 1),
        ("epoch", 2, 20),
        ("steps", 8, 2),
        ("after", "NoneType"),
    ]
    assert cut.calls == [("before", 8), ("steps", 1, 0), ("after", "KeyboardInterrupt")]


def test_a_callback_ends_training_after_an_epoch_or_before_the_first_step() -> None:
    class Enough(Callback):
        def after_epoch(self, model: Any, epoch: int, history: dict[str, list[Any]]) -> bool:
            return epoch == 2

    class Done(Callback):
        def before_training(self, model: Any, n_steps: int) -> bool:
            return True

    state, log = bare_state(), Log()
    run(Recorder(), state, callbacks=[Enough(), log])
    assert (state.step, log.calls[-3:]) == (8, [("epoch", 2, 20), ("steps", 8, 2), ("after", "NoneType")])
    run(Recorder(), state, callbacks=[Done(), log])
    assert (state.step, log.calls[-2:]) == (8, [("before", 12), ("after", "NoneType")])


@pytest.mark.parametrize("hook", ["before_training", "after_steps", "epoch_columns", "after_epoch", "after_training"])
def test_an_error_in_a_callback_leaves_a_state_that_goes_on(make_plan: Callable[..., Plan], hook: str) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))
    ref = run(algorithm, make_state(algorithm))

    def fail(*_: Any) -> None:
        raise RuntimeError(hook)

    failing, log, comp = Callback(), Log(), make_state(algorithm)
    setattr(failing, hook, fail)
    with pytest.raises(RuntimeError, match=hook):
        run(algorithm, comp, callbacks=[failing, log])
    assert log.calls[-1] == ("after", "NoneType" if hook == "after_training" else "RuntimeError")
    run(algorithm, comp)

    comp.history.pop("extra", None)  # of the log
    assert_same(comp, ref)


def test_ctrl_c_during_the_last_hooks_is_taken_once(make_plan: Callable[..., Plan]) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH))

    class Slow(Callback):
        """Ctrl-C comes while it ends, so many times."""

        def __init__(self, times: int) -> None:
            self.times = times

        def after_training(self, model: Any, error: BaseException | None) -> None:
            self.times -= 1
            if self.times >= 0:
                raise KeyboardInterrupt

    log = Log()
    with pytest.raises(Interrupted):
        run(algorithm, make_state(algorithm), callbacks=[Slow(1), log])
    assert log.calls[-1] == ("after", "KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt) as info:
        run(algorithm, make_state(algorithm), callbacks=[Slow(2), log])
    assert not isinstance(info.value, Interrupted)


def test_what_callbacks_remember_is_theirs_and_travels_in_checkpoints() -> None:
    class Counts(Callback):
        def after_epoch(self, model: Any, epoch: int, history: dict[str, list[Any]]) -> None:
            self.memory["n"] = self.memory.get("n", 0) + 1
            self.memory["some.array"] = np.full(2, float(self.memory["n"]))

    first, second, state = Counts(), Counts(), bare_state()
    run(Recorder(), state, callbacks=[first, second], n_epochs=2)
    checkpoint = Checkpoint(state.to_tensors(), json.loads(json.dumps({"state": state.to_metadata()})))

    comp = State.from_checkpoint(checkpoint, size=1, n_slots=1, dtype=np.float32)
    run(Recorder(), comp, callbacks=[first])

    assert (first.memory["n"], first.memory["some.array"].tolist()) == (3, [3.0, 3.0])
    assert comp.memory["Counts-1"]["n"] == second.memory["n"] == 2
    np.testing.assert_array_equal(comp.memory["Counts-1"]["some.array"], [2.0, 2.0])
    # A run that starts afresh remembers nothing.
    run(Recorder(), bare_state(), callbacks=[first], n_epochs=1)
    assert first.memory["n"] == 1


def test_a_pass_takes_all_rows_in_their_order() -> None:
    recorder, state = Recorder(), bare_state()

    loop.run_pass(as_model(state), recorder, n_rows=19, batch_size=8)

    assert [index.tolist() for _, index in recorder.batches] == [
        list(range(8)),
        list(range(8, 16)),
        [16, 17, 18],
    ]
    assert (state.step, state.samples, state.history["epoch"]) == (3, 19, [1])


def test_divergence_by_a_learning_rate_names_step_tensor_and_mend(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(NETWORK, rows=BATCH)
    algorithm = make_algorithm(plan, optimizer=Optimizer("sgd", learning_rate=1000.0))
    state = make_state(algorithm)

    with pytest.raises(DivergenceError, match=r"diverged at step \d+: .+ is not finite; lower learning_rate") as info:
        run(algorithm, state)

    assert f"step {state.step}:" in str(info.value)
    assert "\n" not in str(info.value)
    assert "no checkpoint was kept" in str(info.value)


def logits_overflow(params: Array) -> None:
    NETWORK.layout.views(params)["decoder.logits.b"][:] = 3e38


def logvar_overflow(params: Array) -> None:
    NETWORK.layout.views(params)["encoder.logvar.b"][:] = 500.0


def mu_overflow(params: Array) -> None:
    NETWORK.layout.views(params)["encoder.mu.b"][:] = 1e20  # float32 holds it, and not its square


def nan_weight(params: Array) -> None:
    NETWORK.layout.views(params)["decoder.0.W"][1, 2] = np.nan


@pytest.mark.parametrize(
    ("poison", "tensor", "estimator"),
    [
        (nan_weight, "parameter decoder.0.W", "sgvb-b"),
        (logvar_overflow, "z", "sgvb-b"),
        (logits_overflow, "log_px", "sgvb-b"),
        (mu_overflow, "kl", "sgvb-b"),
        (mu_overflow, "kl", "sgvb-a"),
    ],
)
def test_divergence_names_the_first_tensor_that_is_not_finite(
    make_plan: Callable[..., Plan], poison: Callable[[Array], None], tensor: str, estimator: str
) -> None:
    algorithm = make_algorithm(make_plan(NETWORK, rows=BATCH), estimator=estimator)
    state = make_state(algorithm)
    run(algorithm, state, n_epochs=1)
    poison(state.params)
    before = state.params.copy(), state.slots.copy()

    with pytest.raises(DivergenceError, match=f"step 4: {tensor} is not finite"):
        run(algorithm, state)

    np.testing.assert_array_equal(state.params, before[0])
    np.testing.assert_array_equal(state.slots, before[1])
    assert state.step == 4


def test_append_row_fills_columns_that_come_late() -> None:
    table: dict[str, list[Any]] = {}

    append_row(table, {"a": 1})
    append_row(table, {"a": 2, "b": 3})
    append_row(table, {"b": 4})

    assert table == {"a": [1, 2, None], "b": [None, 3, 4]}


def test_fingerprint_tells_data_apart() -> None:
    import scipy.sparse

    base = make_data(400).rows
    other = base.copy()
    other[0, 0] ^= 1
    variants = {
        "same": as_dataset(base.copy()),
        "value": as_dataset(other),
        "rows": as_dataset(base[:399]),
        "dtype": as_dataset(base.astype(np.float32) / 255),
        "scale": as_dataset(base, scale=1 / 256),
        "sparse": as_dataset(scipy.sparse.csr_array(base)),
    }
    ref = fingerprint(as_dataset(base))

    assert {name for name, data in variants.items() if fingerprint(data) != ref} == variants.keys() - {"same"}
