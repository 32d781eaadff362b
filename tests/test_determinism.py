"""The promise: the same bits for any number of threads, after fork, between threads, and after an interruption."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvae import backends
from fastvae.kernels import STEP_ESTIMATORS, Array, Engine, Plan
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

NETWORKS = {
    "paper": Network(784, 20),
    "odd": Network(131, 3, encoder_hidden=(67, 9), decoder_hidden=(33,), activation="softplus", likelihood="gaussian"),
    "one": Network(1, 1, encoder_hidden=(1,), decoder_hidden=(1,)),
}
ROWS = {"paper": 100, "odd": 37, "one": 1}


def long(engine: Engine, steps: int) -> int:
    """So many steps, or on a GPU, which makes one in tens of microseconds, as many as take about as long."""
    return 20 * steps if engine.NAME == "cuda" else steps


class Training:
    """Parameters, state and statistics of one training on synthetic rows, and its plan."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        steps: int = 20,
        draws: int = 1,
        precision: str = "fp32",
        n_threads: int = 2,
        estimator: str = "sgvb-b",
    ) -> None:
        network, draw = NETWORKS[name], np.random.default_rng(0)
        self.data = draw.integers(0, 256, (300, network.data_dim)).astype(np.uint8)
        self.data *= draw.random(self.data.shape) < 0.2
        self.order = draw.integers(0, 300, (steps, ROWS[name]))
        self.plan: Plan = engine.plan(
            network=network, rows=ROWS[name], draws=draws, precision=precision, n_threads=n_threads
        )
        self.params = initialise(network, seed=2)
        self.optimizer = Optimizer("adam", learning_rate=1e-3)
        self.state = np.zeros((2, self.params.size), np.float32)
        self.stats = np.zeros((steps, 2))
        self.done = np.zeros(1, np.int64)
        self.estimator = estimator

    def run(self, steps: int | None = None, plan: Plan | None = None) -> Training:
        (plan or self.plan).train_steps(
            params=self.params,
            state=self.state,
            optimizer=self.optimizer,
            data=self.data,
            order=self.order[:steps],
            scale=1 / 255,
            binarize="none",
            seed=3,
            step=0,
            estimator=self.estimator,
            kl_weight=1.0,
            kl_warmup=0,
            decay=1e-3,
            stats=self.stats[:steps],
            done=self.done,
        )
        return self

    def bits(self) -> tuple[bytes, bytes, bytes]:
        return self.params.tobytes(), self.state.tobytes(), self.stats.tobytes()


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "draws", "estimator"),
    [(name, draws, "sgvb-b") for name in NETWORKS for draws in (1, 3)]
    + [("odd", 3, estimator) for estimator in STEP_ESTIMATORS[1:]],
)
def test_any_number_of_threads_leaves_the_same_bits(engine: Engine, name: str, draws: int, estimator: str) -> None:
    """More threads than processors, and than rows or columns, too."""
    for precision in set(engine.PRECISIONS) - {"fp64"}:  # whose arrays have another dtype
        size: dict[str, Any] = {"draws": draws, "precision": precision, "estimator": estimator}
        alone = Training(engine, name, n_threads=1, **size).run().bits()
        for n_threads in (1, 2, 3, 7):
            bits = Training(engine, name, n_threads=n_threads, **size).run().bits()
            assert bits == alone, f"{n_threads} threads, {precision}"


def test_operations_do_not_depend_on_threads(engine: Engine) -> None:
    network, draw = NETWORKS["odd"], np.random.default_rng(1)
    params, x = initialise(network, seed=1), draw.random((37, 131)).astype(np.float32)
    z = draw.normal(size=(37, 3)).astype(np.float32)

    def run(precision: str, n_threads: int) -> bytes:
        plan = engine.plan(network=network, rows=37, draws=1, precision=precision, n_threads=n_threads)
        hidden = tuple(np.empty((37, width), np.float32) for width in network.encoder_hidden)
        outputs: list[Array] = [np.empty((37, 3), np.float32) for _ in range(3)]
        log_pxz, grad = np.empty(37, np.float32), np.zeros_like(params)
        plan.encoder_forward(params=params, x=x, hidden=hidden, mu=outputs[0], logvar=outputs[1])
        plan.encoder_backward(params=params, x=x, hidden=hidden, dmu=outputs[0], dlogvar=outputs[1], grad=grad)
        plan.log_joint(params=params, x=x, z=z, log_pxz=log_pxz, dz=outputs[2])
        return b"".join(array.tobytes() for array in (*hidden, *outputs, log_pxz, grad))

    for precision in set(engine.PRECISIONS) - {"fp64"}:  # whose arrays have another dtype
        alone = run(precision, 1)
        assert run(precision, 2) == alone
        assert run(precision, 3) == alone


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_samples_do_not_depend_on_threads(engine: Engine, likelihood: str) -> None:
    draws, rows, latent_dim = 3, 37, 5
    network, draw = Network(131, latent_dim, likelihood=likelihood), np.random.default_rng(1)
    heads = draw.normal(size=(2, rows, latent_dim)).astype(np.float32)
    eps, dz = draw.normal(size=(2, draws, rows, latent_dim)).astype(np.float32)
    weight = draw.random((draws, rows), np.float32)
    out = draw.normal(size=(draws * rows, network.decoder_dims[-1])).astype(np.float32)

    def run(n_threads: int) -> bytes:
        plan = engine.plan(network=network, rows=rows, draws=draws, precision="fp32", n_threads=n_threads)
        z, kl, x = np.empty_like(eps), np.empty_like(weight), np.empty((draws * rows, 131), np.float32)
        dmu, dlogvar = np.empty_like(heads)
        plan.latent_forward_sampled(mu=heads[0], logvar=heads[1], eps=eps, z=z, kl=kl)
        plan.latent_backward_sampled(
            mu=heads[0], logvar=heads[1], eps=eps, dz=dz, weight=weight, dmu=dmu, dlogvar=dlogvar
        )
        plan.likelihood_sample(out=out, seed=1, step=2, x=x)
        return b"".join(array.tobytes() for array in (z, kl, dmu, dlogvar, x))

    alone = run(1)
    assert run(2) == alone
    assert run(5) == alone


@pytest.mark.parametrize("shared_plan", [False, True])
def test_two_python_threads_train_as_if_alone(engine: Engine, shared_plan: bool) -> None:
    """On two plans at once, and on one plan, where calls wait for each other."""
    alone = Training(engine, "odd", steps=60).run().bits()
    trainings = [Training(engine, "odd", steps=60) for _ in range(2)]
    plan = trainings[0].plan if shared_plan else None
    threads = [threading.Thread(target=training.run, kwargs={"plan": plan}) for training in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "training hangs"
    assert [training.bits() for training in trainings] == [alone, alone]


def test_many_plans_come_and_go(engine: Engine) -> None:
    """Threads are returned: 50 plans in a row leave no more of them than a few."""
    Training(engine, "one", n_threads=3).run()
    before = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
    for _ in range(50):
        Training(engine, "one", n_threads=3).run()
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) <= before + 3


# --- fork -----------------------------------------------------------------------------------------------------------


def _child(pipe: Any, training: Training, inherited: bool) -> None:
    engine = backends.load(os.environ["FASTVAE_TEST_ENGINE"])
    pipe.send((training if inherited else Training(engine, "odd")).run().bits())
    pipe.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("inherited", [False, True], ids=["own plan", "inherited plan"])
def test_a_forked_child_trains(engine: Engine, monkeypatch: pytest.MonkeyPatch, inherited: bool) -> None:
    """After the parent has used its threads; the parent goes on afterwards."""
    if engine.NAME == "cuda":
        pytest.skip("CUDA does not work in a forked child: test_cuda.py has what it says")
    monkeypatch.setenv("FASTVAE_TEST_ENGINE", engine.NAME)
    expected = Training(engine, "odd").run().bits()
    training = Training(engine, "odd")
    used = Training(engine, "odd")
    used.run(5, plan=training.plan)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, training, inherited))
    child.start()
    try:
        assert receiver.poll(30), "the child hangs"
        assert receiver.recv() == expected
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert training.run().bits() == expected


# --- signals --------------------------------------------------------------------------------------------------------


@contextmanager
def interrupt_after(seconds: float) -> Iterator[list[float]]:
    """Send this process SIGINT from another thread; yields the list that gets the moment of sending."""
    sent: list[float] = []
    cancelled = threading.Event()

    def send() -> None:
        if not cancelled.wait(seconds):
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        cancelled.set()
        sender.join()
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("estimator", ["sgvb-b", "iwae", "wake-sleep"])
def test_ctrl_c_is_answered_within_200_ms(engine: Engine, estimator: str) -> None:
    """Best of three; what is left is exactly the state after `done` clean steps."""
    waits, steps = [], long(engine, 5000)
    Training(engine, "paper", estimator=estimator).run(1)  # compiles, where the engine does so at first use
    for attempt in range(3):
        training = Training(engine, "paper", steps=steps, estimator=estimator)
        with interrupt_after(0.1 + 0.03 * attempt) as sent, pytest.raises(KeyboardInterrupt):
            training.run()
        waits.append(time.perf_counter() - sent[0])
        done = int(training.done[0])
        assert done < steps
        clean = Training(engine, "paper", steps=steps, estimator=estimator).run(done)
        assert int(clean.done[0]) == done
        np.testing.assert_array_equal(training.params, clean.params)
        np.testing.assert_array_equal(training.state, clean.state)
        np.testing.assert_array_equal(training.stats[:done], clean.stats[:done])
        if waits[-1] <= 0.2:
            return
    pytest.fail(f"Ctrl-C was answered after {', '.join(f'{1000 * wait:.0f}' for wait in waits)} ms")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_handler_that_does_not_raise_changes_nothing(engine: Engine) -> None:
    """It is called while the steps run, and the bits are the same."""
    steps = long(engine, 150)
    expected = Training(engine, "paper", steps=steps).run().bits()
    training, calls = Training(engine, "paper", steps=steps), []
    previous = signal.signal(signal.SIGALRM, lambda *_: calls.append(int(training.done[0])))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        training.run()
        during = len(calls)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert training.bits() == expected
    assert during > 0, "no signal was handled while training"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_an_exception_of_a_handler_comes_through(engine: Engine) -> None:
    """Not KeyboardInterrupt alone: a time limit by SIGALRM works."""

    def expire(*_: Any) -> None:
        raise TimeoutError("time is up")

    steps = long(engine, 5000)
    training = Training(engine, "paper", steps=steps)
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError, match="time is up"):
            training.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    done = int(training.done[0])
    np.testing.assert_array_equal(training.params, Training(engine, "paper", steps=steps).run(done).params)


def test_other_python_threads_run_during_training(engine: Engine) -> None:
    """The interpreter is not held: a second thread counts on while steps run."""
    training, stop = Training(engine, "paper", steps=long(engine, 100)), threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.002):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    training.run()
    stop.set()
    thread.join()
    assert ticks > 5


# --- instruction sets -----------------------------------------------------------------------------------------------


def _isa_levels() -> list[Any]:
    """Levels of the C++ engine on this machine; one visible skip without it."""
    if reason := backends.unavailable("cpp"):
        return [pytest.param("none", marks=pytest.mark.skip(reason=reason))]
    native: Any = backends.load("cpp")
    return list(native.isa_levels())


def _python(level: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTVAE_SIMD_LEVEL": level}
    return subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", _isa_levels())
def test_every_instruction_set_passes_the_engines_tests(level: str) -> None:
    """The level is forced in a fresh process, which runs operations, noise, optimizers and trajectories again."""
    asked = _python(level, "-c", "from fastvae import _native; print(_native.isa_level())")
    assert asked.stdout.strip() == level, asked.stderr
    here = Path(__file__).parent
    files = ["test_operations.py", "test_rng.py", "test_optimizer.py", "test_trajectory.py"]
    options = ["-q", "-x", "-k", "cpp", "-p", "no:cacheprovider", "--no-header"]
    run = _python(level, "-m", "pytest", *options, *(str(here / file) for file in files), cwd=here.parent)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


@pytest.mark.slow
def test_numba_compiles_for_the_narrowest_vectors(tmp_path: Path) -> None:
    """A processor without AVX has panels, tiles and loops of its own."""
    if reason := backends.unavailable("numba"):
        pytest.skip(reason)
    here, kept = Path(__file__).parent, {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    chosen = "numba and (bits_of_the_operations and deep or golden and (uneven or wide or paper-adam))"
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-k", chosen, "-p", "no:cacheprovider"]
        + [str(here / file) for file in ("test_sparse.py", "test_trajectory.py")],
        env={**os.environ, **kept},
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert re.search(r"^\d\d passed", run.stdout, re.MULTILINE), run.stdout


def test_an_unknown_instruction_set_is_named() -> None:
    """No silent fallback to another level: whoever asks for a plan gets one line with the mend."""
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    code = (
        "from fastvae import Network, backends\n"
        "backends.load('cpp').plan(Network(3, 1), rows=1, draws=1, precision='fp32', n_threads=1)"
    )
    run = _python("sse9", "-c", code)
    assert run.returncode != 0
    assert re.search(r"BackendError: .*FASTVAE_SIMD_LEVEL=sse9.*baseline", run.stderr.splitlines()[-1]), run.stderr
