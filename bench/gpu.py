"""Steps of the CUDA engine over minibatch sizes and widths, and the constants of the device that bound them.

``python -m fastvae.bench.gpu --json FILE``. Rows lie on the device; a turn is one call of ``train_steps``, long enough
that what it brings to the device and back does not show. The peers are in ``fastvae bench``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import click
import numpy as np

from fastvae import backends
from fastvae.kernels import Engine
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

__all__ = ["main", "measure_constants", "measure_steps"]

_ROWS = 20_000  # of the dataset
_SHAPES = [(rows, 500) for rows in (100, 128, 1024, 4096, 16384)] + [(100, 1024), (1024, 1024), (4096, 4096)]
_TURNS = 9
_SECONDS = 0.4  # of a turn
_MOST_STEPS = 4096


def _spread(samples: list[float]) -> dict[str, float]:
    fifths = quantiles(samples, n=10, method="inclusive")
    return {"p20": fifths[1], "p50": fifths[4], "p80": fifths[7]}


def measure_steps(
    engine: Engine,
    *,
    rows: int,
    hidden: int,
    precision: str,
    placed: Callable[[Any], Any],
    turns: int = _TURNS,
    seconds: float = _SECONDS,
) -> dict[str, Any]:
    """Time steps of the paper's network of any width with Adagrad.

    Parameters
    ----------
    engine : Engine
    rows, hidden : int
        M and H.
    precision : str
    placed : callable
        Brings an array to where the engine works.
    turns : int
        Turns that count, after one that does not.
    seconds : float
        About how long a turn takes.

    Returns
    -------
    dict
        Microseconds of a step and the arithmetic rate of its products, JSON-serialisable.
    """
    network, draw = Network(784, 20, (hidden,), (hidden,)), np.random.default_rng(0)
    plan = engine.plan(network, rows=rows, draws=1, precision=precision, n_threads=1)
    grey = draw.integers(0, 256, (_ROWS, 784)) * (draw.random((_ROWS, 784)) < 0.19)
    data, params = placed(grey.astype(np.uint8)), placed(initialise(network, seed=0))
    state, done = placed(np.zeros((1, network.layout.size), np.float32)), np.zeros(1, np.int64)

    def turn(steps: int) -> float:
        order, stats = draw.integers(0, _ROWS, (steps, rows)), np.empty((steps, 2))
        begin = perf_counter()
        plan.train_steps(
            params=params,
            state=state,
            optimizer=Optimizer("adagrad", learning_rate=0.01),
            data=data,
            order=order,
            scale=1 / 255,
            binarize="none",
            seed=0,
            step=0,
            estimator="sgvb-b",
            kl_weight=1.0,
            kl_warmup=0,
            decay=0.0,
            stats=stats,
            done=done,
        )
        if done[0] < steps:
            raise ArithmeticError(f"the bound of step {done[0]} is not finite")
        return (perf_counter() - begin) / steps

    turn(8)  # compiles
    steps = max(8, min(_MOST_STEPS, int(seconds / turn(8))))
    turn(steps)
    step = _spread([turn(steps) for _ in range(turns)])
    products = 6 * rows * sum(layer.fan_in * layer.fan_out for layer in network.layout.layers)
    return {
        "M": rows,
        "H": hidden,
        "precision": precision,
        "steps": steps,
        "us_per_step": {name: 1e6 * value for name, value in step.items()},
        "tflops": products / step["p50"] / 1e12,
    }


def measure_constants() -> dict[str, dict[str, float]]:
    """Time an empty kernel, launched by itself and as a node of a graph of a thousand, in microseconds."""
    import cupy

    kernel = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    stream, many = cupy.cuda.Stream(non_blocking=True), 1000

    def launch() -> None:
        for _ in range(many):
            kernel((1,), (32,), ())

    def seconds_of(work: Callable[[], Any]) -> float:
        stream.synchronize()
        begin = perf_counter()
        work()
        stream.synchronize()
        return (perf_counter() - begin) / many

    with stream:
        launch()
        stream.begin_capture()
        launch()
        graph = stream.end_capture()
        graph.launch(stream)
        works = {"launch": launch, "graph node": lambda: graph.launch(stream)}
        samples = {name: [1e6 * seconds_of(work) for _ in range(_TURNS)] for name, work in works.items()}
    return {name: _spread(values) for name, values in samples.items()}


def _lines(engine: Engine, placed: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
    for rows, hidden in _SHAPES:
        for precision in engine.PRECISIONS:
            line = measure_steps(engine, rows=rows, hidden=hidden, precision=precision, placed=placed)
            step = line["us_per_step"]
            click.echo(
                f"M {rows:6d}  H {hidden:5d}  {precision}  {step['p50']:10.1f} us "
                f"({step['p20']:.1f} to {step['p80']:.1f})  {line['tflops']:7.2f} TFLOP/s"
            )
            yield line


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True, help="Write the results here.")
def main(json_file: Path) -> None:
    """Time the CUDA engine."""
    engine = backends.load("cuda")
    import cupy

    results: dict[str, Any] = {"device": backends.isa_level(engine), "cupy": cupy.__version__}
    results["constants_us"] = measure_constants()
    for name, value in results["constants_us"].items():
        click.echo(f"{name}: {value['p50']:.2f} us ({value['p20']:.2f} to {value['p80']:.2f})")
    results["steps"] = list(_lines(engine, cupy.asarray))
    json_file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
