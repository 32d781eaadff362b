"""Steps of the CUDA engine on a GPU beside PyTorch's and JAX's, over minibatch sizes and widths, and the targets.

``python -m fastvae.bench.gpu constants``, then ``steps ours``, ``estimators``, ``run``, ``steps torch`` and
``steps jax``, each a process of its own, so that one that fails takes no other with it; then ``report``, which joins
their files. A file is written anew after every measurement. ``host`` needs no GPU. Everybody trains the paper's network
with Adagrad on the same rows, which lie on the device as bytes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import click
import numpy as np

from fastvae import backends
from fastvae.bench.cases import CASES, Case
from fastvae.bench.data import Minibatches
from fastvae.bench.gpu_constants import measure_constants, spread
from fastvae.bench.gpu_run import IdleDevice, whole_run
from fastvae.bench.gpu_targets import TARGET_SHAPES, judged, with_ratios
from fastvae.data import Dataset
from fastvae.errors import one_line
from fastvae.files import replace_file
from fastvae.kernels import STEP_ESTIMATORS, Plan
from fastvae.kernels.cuda import CudaPlan, paths
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import AEVB
from fastvae.training.wake_sleep import WakeSleep

__all__ = ["SWEEP_SHAPES", "OurSteps", "Steps", "case_of", "main", "measured", "order_of"]

SWEEP_SHAPES = tuple(
    (rows, hidden)
    for hidden in (500, 1024, 4096)
    for rows in (100, 128, 1024, 4096, 16384)
    if (rows, hidden) not in TARGET_SHAPES
)
_PRECISIONS = ("bf16", "fp32", "tf32")
# Turns, and seconds of each: a thousand steps and more of up to 600 us; in the sweep fewer, for there are many sizes.
_TURNS, _SWEEP_TURNS = (5, 0.12), (3, 0.08)
_MOST_STEPS = 4000  # of a turn
_ORDER_ROWS = 2**21  # of the rows that a runner's steps go through again and again


class Steps(Protocol):
    """Training steps, one after another, on the device."""

    def run(self, steps: int) -> int:
        """Queue about so many steps; return how many."""

    def bound(self) -> float:
        """Return the mean bound of the last steps, in nats."""


def case_of(rows: int, hidden: int) -> Case:
    """Return the paper's MNIST step with other numbers of rows and hidden units."""
    network = Network(784, 20, (hidden,), (hidden,))
    name, optimizer = f"M = {rows}, H = {hidden}", Optimizer("adagrad", learning_rate=0.01)
    return Case(name, "The paper's MNIST step with other sizes", network, rows, 1, optimizer=optimizer)


def order_of(data: Dataset, rows: int) -> Any:
    """Return the rows of as many steps as a runner goes through before it starts again."""
    return Minibatches(data.n_rows, rows).take(max(16, min(1000, _ORDER_ROWS // rows)))


def measured(
    steps: Steps,
    seconds_of: Callable[[Callable[[], Any]], float],
    *,
    turns: int,
    seconds: float,
) -> dict[str, Any]:
    """Time steps in turns of about `seconds`, after a warm-up.

    Parameters
    ----------
    steps : Steps
    seconds_of : callable
        Runs a function and returns the seconds that the device was at it.
    turns : int
    seconds : float

    Returns
    -------
    dict
        Steps of a turn, microseconds of a step, and the bound that they came to. JSON-serialisable.
    """

    def turn(n: int) -> float:
        made = 0

        def work() -> None:
            nonlocal made
            made = steps.run(n)

        return seconds_of(work) / made

    turn(8)  # compiles
    n = max(3, min(_MOST_STEPS, int(seconds / turn(8))))
    turn(n)
    times = spread([1e6 * turn(n) for _ in range(turns)])
    return {"steps_of_a_turn": n, "turns": turns, "us_per_step": times, "bound": steps.bound()}


class OurSteps:
    """Consecutive steps in one ``train_steps`` call per turn; `placed` brings an array to where the plan works.

    Attributes
    ----------
    stats : ndarray of shape (T, 2)
        Of the last call's steps.
    """

    def __init__(
        self,
        case: Case,
        data: Dataset,
        order: Any,
        plan: Plan,
        placed: Callable[[Any], Any],
        *,
        estimator: str = "sgvb-b",
    ) -> None:
        self._case, self._scale, self._order, self._plan = case, data.scale, order, plan
        self._estimator = estimator
        self._data, self._params = placed(data.rows), placed(initialise(case.network, seed=0))
        self._state = placed(np.zeros((case.optimizer.n_slots, case.network.layout.size), np.float32))
        self._step, self.stats = 0, np.zeros((0, 2))

    def run(self, steps: int) -> int:
        """Make so many steps."""
        if steps > len(self._order):
            self._order = np.resize(self._order, (steps, self._order.shape[1]))
        done, self.stats = np.zeros(1, np.int64), np.zeros((steps, 2))
        self._plan.train_steps(
            params=self._params,
            state=self._state,
            optimizer=self._case.optimizer,
            data=self._data,
            order=self._order[:steps],
            scale=self._scale,
            binarize="none",
            seed=0,
            step=self._step,
            estimator=self._estimator,
            kl_weight=1.0,
            kl_warmup=0,
            decay=0.0,
            stats=self.stats,
            done=done,
        )
        if done[0] < steps:
            raise ArithmeticError(f"the bound of step {self._step + done[0]} is not finite")
        self._step += steps
        return steps

    def bound(self) -> float:
        """Return the mean bound of the last turn."""
        return float((self.stats[:, 0] - self.stats[:, 1]).mean())


class _JaxSteps:
    """Whole passes through the order, each one call of a compiled scan."""

    def __init__(self, case: Case, data: Dataset, order: Any, *, precision: str, unroll: int) -> None:
        import jax

        from fastvae.bench import peers_jax

        # by default float32 products are tf32 on a GPU
        jax.config.update("jax_default_matmul_precision", "highest" if precision == "fp32" else "default")
        self._training: Any = peers_jax.make(case, data, n_threads=1, bf16=precision == "bf16", unroll=unroll)
        self._order = jax.device_put(order.astype(np.int32))

    def run(self, steps: int) -> int:
        rounds = -(-steps // len(self._order))
        for _ in range(rounds):
            self._training.run(self._order)
        return rounds * len(self._order)

    def bound(self) -> float:
        return -float(self._training.losses.mean())


# --- clocks ----------------------------------------------------------------------------------------------------------


def _by_host(work: Callable[[], Any]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def _by_cupys_events(work: Callable[[], Any]) -> float:
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    work()
    end.record()  # on the stream that the engine makes wait for what it has done
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


def _by_torchs_events(work: Callable[[], Any]) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


# --- who is measured -------------------------------------------------------------------------------------------------

# Who, in which precision, and what makes their steps.
_Runner = tuple[str, str, Callable[[Case, Dataset, Any], Steps]]


def _require_engine() -> None:
    if reason := backends.unavailable("cuda"):
        raise click.ClickException(reason)


def _ours(sweep: bool) -> Iterator[_Runner]:
    _require_engine()
    import cupy

    from fastvae.kernels.cuda.device import CupyDevice
    from fastvae.kernels.cuda.plan import CudaPlan

    ways = [("own", True), *((path, False) for path in paths.PATHS)]  # and whether launches overlap
    for precision in _PRECISIONS:
        for path, overlap in ways:

            def make(
                case: Case,
                data: Dataset,
                order: Any,
                precision: str = precision,
                path: str = path,
                overlap: bool = overlap,
            ) -> Steps:
                sizes = {"rows": case.batch_size, "draws": 1, "precision": precision, "n_threads": 1}
                device = CupyDevice(overlap=overlap)
                plan = CudaPlan(case.network, device=device, name="cuda", products=path, **sizes)
                return OurSteps(case, data, order, plan, cupy.asarray)

            yield f"fastvae {path}{' overlap' if overlap else ''}", precision, make


def _torch(sweep: bool) -> Iterator[_Runner]:
    if find_spec("torch") is None:
        raise click.ClickException("PyTorch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("PyTorch finds no GPU: is it a build for CUDA, and the driver new enough?")
    from fastvae.bench.gpu_torch import VARIANTS, TorchSteps

    # compiling takes long: in the sweep the best that does not compile, and tf32, which no target asks for, without
    for variant in ("eager graph",) if sweep else VARIANTS:
        for precision in _PRECISIONS if variant.startswith("eager") else ("bf16", "fp32"):

            def make(
                case: Case, data: Dataset, order: Any, precision: str = precision, variant: str = variant
            ) -> Steps:
                return TorchSteps(case, data, order, precision=precision, variant=variant)

            yield f"torch {variant}", precision, make


def _jax(sweep: bool) -> Iterator[_Runner]:
    if find_spec("jax") is None:
        raise click.ClickException("JAX is not installed")
    import jax

    if jax.default_backend() != "gpu":
        raise click.ClickException(f"JAX works on the {jax.default_backend()} here: install jax[cuda13]")
    for unroll in (1,) if sweep else (1, 10):
        for precision in _PRECISIONS:

            def make(case: Case, data: Dataset, order: Any, precision: str = precision, unroll: int = unroll) -> Steps:
                return _JaxSteps(case, data, order, precision=precision, unroll=unroll)

            yield "jax scan" if unroll == 1 else f"jax scan by {unroll}", precision, make


_WHO: dict[str, tuple[Callable[[bool], Iterator[_Runner]], Any, str]] = {
    "ours": (_ours, _by_cupys_events, "CUDA events"),
    "torch": (_torch, _by_torchs_events, "CUDA events"),
    "jax": (_jax, _by_host, "host"),
}


# --- the command -----------------------------------------------------------------------------------------------------


def _write(path: Path, document: dict[str, Any]) -> None:
    with replace_file(path) as stream:
        stream.write(json.dumps(document, indent=1).encode() + b"\n")


def _versions() -> dict[str, str]:
    found = {}
    for name in ("fastvae", "cupy-cuda13x", "cupy-cuda12x", "torch", "jax", "nvidia-cublas", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _label(*, who: str, precision: str, M: int, H: int, **_: Any) -> dict[str, Any]:
    """Name what a line is of."""
    return {"who": who, "precision": precision, "M": M, "H": H}


def _context_is_lost() -> bool:
    """Say whether a kernel that failed has cost this process its CUDA context, and so all that is still to come."""
    try:
        import cupy
    except ImportError:
        return False
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        return True
    return False


json_option = click.option("--json", "json_file", type=click.Path(path_type=Path), required=True, help="Result.")


@click.group()
def main() -> None:
    """Time the CUDA engine, its peers and the device."""


@main.command()
@json_option
def constants(json_file: Path) -> None:
    """Measure what the device can do."""
    _require_engine()
    results = measure_constants()
    _write(
        json_file, {"device": backends.isa_level(backends.load("cuda")), "versions": _versions(), "constants": results}
    )
    click.echo(json.dumps(results, indent=1))


@main.command()
@click.argument("who", type=click.Choice(list(_WHO)))
@click.option("--sweep", is_flag=True, help="All sizes but those of the targets, which are measured without it.")
@click.option("--go-on", is_flag=True, help="Keep what the file has, and measure what it does not have.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Nothing is begun after so many.")
@json_option
def steps(who: str, sweep: bool, go_on: bool, seconds: float, json_file: Path) -> None:
    """Time training steps of WHO."""
    begin, (runners, clock, clock_name) = perf_counter(), _WHO[who]
    turns, turn_seconds = _SWEEP_TURNS if sweep else _TURNS
    document: dict[str, Any] = {"who": who, "versions": _versions(), "steps": [], "failed": [], "left_out": []}
    if go_on and json_file.exists():
        document |= _read(json_file)
    known = [_label(**line) for line in (*document["steps"], *document["failed"])]
    data = case_of(*TARGET_SHAPES[0]).load()
    cases = [case_of(*shape) for shape in (SWEEP_SHAPES if sweep else TARGET_SHAPES)]
    orders = [order_of(data, case.batch_size) for case in cases]
    # the first of everybody at every size, then the second: what time does not suffice for is the same at every size
    for name, precision, make in runners(sweep):
        for case, order in zip(cases, orders, strict=True):
            label = _label(who=name, precision=precision, M=case.batch_size, H=case.network.encoder_hidden[0])
            if label in known:
                continue
            if perf_counter() - begin > seconds:
                document["left_out"].append(label)
                continue
            try:
                times = measured(make(case, data, order), clock, turns=turns, seconds=turn_seconds)
                line = {**label, "clock": clock_name, "data": data.name, **times}
            except Exception as error:  # one that cannot run takes no other with it
                traceback.print_exc()
                document["failed"].append({**label, "reason": f"{type(error).__name__}: {one_line(error)}"})
                click.echo(f"{case.name}, {name} {precision}: {document['failed'][-1]['reason']}")
                if _context_is_lost():
                    _write(json_file, document)
                    rest = ["--go-on", "--seconds", str(seconds - (perf_counter() - begin)), "--json", str(json_file)]
                    command = ["-P", "-m", "fastvae.bench.gpu", "steps", who, *(["--sweep"] if sweep else []), *rest]
                    os.execv(sys.executable, [sys.executable, *command])
            else:
                step = line["us_per_step"]
                line["tflops"] = case.flops / step["p50"] / 1e6
                if who == "ours":
                    choice = paths.chosen("auto", case.network, case.batch_size, 1, precision)
                    line["is_default"] = name == f"fastvae {choice}"
                document["steps"].append(line)
                click.echo(
                    f"{case.name}, {name} {precision}: {step['p50']:.1f} us ({step['p20']:.1f} to {step['p80']:.1f}), "
                    f"{line['tflops']:.1f} TFLOP/s, bound {line['bound']:.2f}"
                )
            _write(json_file, document)
    _write(json_file, document)


@main.command()
@json_option
def estimators(json_file: Path) -> None:
    """Time the paper's step by every estimator of `train_steps`, in bf16, and add them to the file."""
    _require_engine()
    import cupy

    case = case_of(*TARGET_SHAPES[0])
    data, engine, (turns, seconds) = case.load(), backends.load("cuda"), _TURNS
    document: dict[str, Any] = _read(json_file) if json_file.exists() else {"versions": _versions()}
    document["estimators"] = {}
    for estimator in STEP_ESTIMATORS:
        draws = 5 if estimator == "iwae" else 1
        plan = engine.plan(case.network, rows=case.batch_size, draws=draws, precision="bf16", n_threads=1)
        steps = OurSteps(case, data, order_of(data, case.batch_size), plan, cupy.asarray, estimator=estimator)
        line = {"draws": draws, **measured(steps, _WHO["ours"][1], turns=turns, seconds=seconds)}
        document["estimators"][estimator] = line
        _write(json_file, document)
        click.echo(f"{estimator}, draws {draws}: {line['us_per_step']['p50']:.1f} us, bound {line['bound']:.2f}")


@main.command()
@click.option("--samples", type=float, default=1e8, show_default=True, help="Datapoints to train on.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="No epoch is begun after so many.")
@json_option
def run(samples: float, seconds: float, json_file: Path) -> None:
    """Time the paper's run on MNIST through the training loop, in bf16, and add it to the file."""
    _require_engine()
    case = case_of(*TARGET_SHAPES[0])
    engine = backends.load("cuda")
    plan = engine.plan(case.network, rows=case.batch_size, draws=1, precision="bf16", n_threads=1)
    document = _read(json_file) if json_file.exists() else {"versions": _versions()}
    document["run"] = whole_run(case, case.load(), plan, samples=int(samples), seconds=seconds)
    _write(json_file, document)
    click.echo(json.dumps(document["run"], indent=1))


@main.command()
@click.option("--samples", type=float, default=1e7, show_default=True, help="Datapoints to train on.")
def host(samples: float) -> None:
    """Time what the host does in such runs, with a device that takes no time in place of the GPU."""
    for name, kind in (("mnist", AEVB), ("mnist", WakeSleep), ("freyface", AEVB)):
        case = CASES[name]
        sizes: dict[str, Any] = {"rows": case.batch_size, "draws": 1, "precision": "bf16", "n_threads": 1}
        plan = CudaPlan(case.network, device=IdleDevice(), name="cuda", **sizes)
        data = case.load()
        free, halted = (
            whole_run(case, data, plan, samples=int(samples), every_epoch=every_epoch, kind=kind)["us_per_step"]
            for every_epoch in (False, True)
        )
        label = f"{name}, {kind.estimator}"
        click.echo(f"{label}: the host takes {free:.1f} us for a step, {halted:.1f} with a halt after every epoch")


@main.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@json_option
def report(files: tuple[Path, ...], json_file: Path) -> None:
    """Join what was measured into one document, with ratios and the targets. Files that are missing are named."""
    document: dict[str, Any] = {"format": "fastvae bench gpu 1", "device": None, "versions": {}, "constants": {}}
    document |= {"run": {}, "estimators": {}}
    lists: dict[str, list[Any]] = {"steps": [], "failed": [], "left_out": [], "missing": []}
    for path in files:
        if not path.exists():
            lists["missing"].append(path.name)
            continue
        part = _read(path)
        for key in ("device", "constants", "run", "estimators"):
            document[key] = part.get(key) or document[key]
        document["versions"] |= part["versions"]
        for key in ("steps", "failed", "left_out"):
            lists[key] += part.get(key, [])
    document |= lists
    document["crossover_flops"] = paths.CROSSOVER
    document["steps"] = with_ratios(document["steps"])
    document["targets"] = judged(document["steps"], document["constants"], document["run"])
    _write(json_file, document)
    for target in document["targets"]:
        click.echo(f"{target['target']}: {target['verdict']} ({target['figures']})")


if __name__ == "__main__":
    main()
