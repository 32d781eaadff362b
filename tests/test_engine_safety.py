"""The engine when things around it go wrong: memory replaced, threads refused, handlers that call it, shutdown."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import scipy.sparse

from fastvae import backends
from fastvae.kernels import Plan
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

SETUP = """
import numpy as np, resource, signal, sys, threading, time
from fastvae import backends
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

def training(network, rows, steps, n_threads, data):
    plan = backends.load(sys.argv[1]).plan(network, rows=rows, draws=1, precision="fp32", n_threads=n_threads)
    params = initialise(network, seed=0)
    done = np.zeros(1, np.int64)
    order = np.arange(steps * rows, dtype=np.int64).reshape(steps, rows) % data.shape[0]
    def run():
        plan.train_steps(params=params, state=np.zeros((1, params.size), np.float32), optimizer=Optimizer("sgd"),
            data=data, order=order, scale=1.0, binarize="none", seed=0, step=0, estimator="sgvb-b",
            kl_weight=1.0, kl_warmup=0, decay=0.0, stats=np.zeros((steps, 2)), done=done)
    return plan, params, done, run
"""


def run_script(compiled: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", SETUP + dedent(script), compiled],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_training(
    name: str, network: Network, *, rows: int, steps: int, data: object, n_rows: int, n_threads: int = 2
) -> tuple[Plan, np.ndarray, np.ndarray, dict[str, object]]:
    plan = backends.load(name).plan(network, rows=rows, draws=1, precision="fp32", n_threads=n_threads)
    params, done = initialise(network, seed=0), np.zeros(1, np.int64)
    arguments = {
        "params": params,
        "state": np.zeros((2, params.size), np.float32),
        "optimizer": Optimizer("adam"),
        "data": data,
        "order": np.arange(steps * rows, dtype=np.int64).reshape(steps, rows) % n_rows,
        "scale": 1.0,
        "binarize": "none",
        "seed": 0,
        "step": 0,
        "estimator": "sgvb-b",
        "kl_weight": 1.0,
        "kl_warmup": 0,
        "decay": 0.0,
        "stats": np.zeros((steps, 2)),
        "done": done,
    }
    return plan, params, done, arguments


def test_csr_arrays_replaced_during_training_are_kept_alive(compiled: str) -> None:
    generator = np.random.default_rng(0)
    data = scipy.sparse.csr_array((generator.random((400, 60)) < 0.2).astype(np.float32))
    network = Network(60, 3, (16,), (16,))
    plan, ref, _, arguments = make_training(compiled, network, rows=20, steps=2000, data=data.copy(), n_rows=400)
    plan.train_steps(**arguments)
    plan, comp, _, arguments = make_training(compiled, network, rows=20, steps=2000, data=data, n_rows=400)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            data.indices, data.indptr, data.data = data.indices.copy(), data.indptr.copy(), data.data.copy()

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        plan.train_steps(**arguments)
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(comp, ref)


def test_threads_that_cannot_be_started_are_an_error_and_the_plan_lives_on(compiled: str) -> None:
    """The operating system refuses some of the threads; afterwards the same plan works."""
    done = run_script(
        compiled,
        """
        from fastvae.errors import BackendError
        network, data = Network(30, 2, (8,), (8,)), np.zeros((10, 30), np.float32)
        training(network, 10, 5, 1, data)[3]()  # whatever is compiled or loaded at first use needs memory too
        plan, params, done, run = training(network, 10, 5, 1000, data)
        limit = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, limit[1]))
        try:
            run()
        except BackendError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        mu = np.empty((10, 2), np.float32)
        x, hidden = np.zeros((10, 30), np.float32), (np.empty((10, 8), np.float32),)
        plan.encoder_forward(params=params, x=x, hidden=hidden, mu=mu, logvar=mu.copy())
        run()
        print(done[0])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot start 1000 threads" in done.stdout
    assert "lower n_threads" in done.stdout
    assert done.stdout.endswith("5\n")


def test_a_signal_handler_that_calls_the_same_plan_gets_an_error(compiled: str) -> None:
    data = np.zeros((50, 784), np.float32)
    plan, _, _, arguments = make_training(compiled, Network(784, 20), rows=50, steps=100_000, data=data, n_rows=50)
    previous = signal.signal(signal.SIGALRM, lambda *_: plan.train_steps(**arguments))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(RuntimeError, match="in use by the call that was interrupted"):
            plan.train_steps(**arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_daemon_thread_may_train_while_the_interpreter_ends(compiled: str) -> None:
    for _ in range(3):
        done = run_script(
            compiled,
            """
            data = np.zeros((50, 100), np.float32)
            plan, params, done, run = training(Network(100, 2, (30,), (30,)), 50, 4000, 2, data)
            threading.Thread(target=run, daemon=True).start()
            while not done[0]:
                time.sleep(0.001)
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_answered_within_a_long_step(compiled: str) -> None:
    """A step of seconds is cut within its phases, before it has updated anything."""
    data = np.random.default_rng(0).random((1000, 1500), dtype=np.float32)
    network = Network(1500, 20, (1500,), (1500,))
    plan, params, done, arguments = make_training(compiled, network, rows=8000, steps=1, data=data, n_rows=1000)
    before = params.copy()
    waits = []
    for _ in range(3):
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        try:
            start = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                plan.train_steps(**arguments)
            waits.append(time.perf_counter() - start - 0.15)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert done[0] == 0
        np.testing.assert_array_equal(params, before)
    assert min(waits) < 0.2


def test_denormal_optimizer_state_becomes_zero(compiled: str) -> None:
    """Adam's first moment of a weight without gradient dies out instead of sticking at the smallest denormal."""
    network = Network(16, 2, (4,), (4,))
    plan = backends.load(compiled).plan(network, rows=1, draws=1, precision="fp32", n_threads=2)
    params, grad = initialise(network, seed=0), np.zeros(network.layout.size, np.float32)
    state = np.full((2, params.size), 1e-38, np.float32)
    for step in range(30):
        plan.update(optimizer=Optimizer("adam"), params=params, grad=grad, state=state, step=step, decay=0.0)
    assert (state[0] == 0).all()
    ones = np.float32(1e-40) * np.ones(4, np.float32)
    assert (ones > 0).all(), "the caller's own arithmetic keeps its denormals"


COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long count;
long allocations(void) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }
#define COUNTED(name, parameters, arguments)                                  \\
  void* name parameters {                                                     \\
    static void*(*next) parameters;                                           \\
    if (!next) next = (void* (*)parameters)dlsym(RTLD_NEXT, #name);           \\
    __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);                          \\
    return next arguments;                                                    \\
  }
COUNTED(malloc, (size_t n), (n))
COUNTED(realloc, (void* p, size_t n), (p, n))
COUNTED(aligned_alloc, (size_t a, size_t n), (a, n))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's")
def test_no_step_allocates(compiled: str, tmp_path: Path) -> None:
    """The engine takes as much memory from the system in 2000 steps as in 20."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    script = """
        import ctypes
        counter = ctypes.CDLL(None).allocations
        data = (np.random.default_rng(0).random((500, 90)) < 0.3).astype(np.float32)
        counts = []
        for steps in (20, 20, 2000):
            plan, params, done, run = training(Network(90, 3, (20,), (20,)), 25, steps, 2, data)
            run()
            before = counter()
            run()
            counts.append(counter() - before)
        print(counts[1], counts[2])
        """
    done = subprocess.run(
        [sys.executable, "-P", "-c", SETUP + dedent(script), compiled],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = map(int, done.stdout.split())
    assert many < few + 50, f"{few} allocations around 20 steps, {many} around 2000"
