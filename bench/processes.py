"""The parent's side of a worker process, and taking turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from fastvae.bench import worker
from fastvae.bench.cases import Case
from fastvae.bench.contestants import Contestant
from fastvae.kernels import Array

__all__ = ["Process", "SkippedError", "rounds_of_turns", "skip", "started"]

# A library's threads may spin on for some milliseconds after their last work; the next worker starts after that.
_PAUSE = 0.05


class SkippedError(Exception):
    """A contestant cannot take part; the text says why."""


class Process:
    """A worker: one contestant on one case and a number of threads, in a process of its own.

    Every library is told the number of threads, the process is bound to as many processors, and what a library caches
    on disk goes to a folder that starts empty: a first step is a cold one.

    Raises
    ------
    SkippedError
        The contestant cannot run here.
    """

    def __init__(self, contestant: Contestant, case: Case | None, threads: int) -> None:
        self.contestant, self.threads = contestant, threads
        self.readings: list[dict[str, Any]] = []
        if contestant.missing:
            raise SkippedError(contestant.missing)
        self._closing = ExitStack()
        self._folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="fastvae-bench-")))
        self._errors = self._closing.enter_context((self._folder / "stderr").open("w+"))
        variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "NUMBA_CACHE_DIR": "numba", "TRITON_CACHE_DIR": "triton"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                **dict.fromkeys(variables, str(threads)),
                **{name: str(self._folder / folder) for name, folder in caches.items()},
                "JAX_PLATFORMS": "cpu",
            },
        )
        try:
            self.ready = self._ask(
                imports=contestant.imports,
                module=contestant.module,
                case=case and case.to_dict(),
                threads=threads,
                options=contestant.options,
            )
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["without a word"])[-1]
            raise SkippedError(f"its process ended with code {self._process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("type") == "ModuleNotFoundError":
            raise SkippedError(f"{answer['error']}: pip install 'fastvae[bench]'")
        if "error" in answer:
            raise SkippedError(answer["error"])
        return answer

    def run(self, steps: int) -> dict[str, Any]:
        """Make steps; return their seconds and phases."""
        sleep(_PAUSE)
        return self._ask(do="run", steps=steps)

    def reset(self) -> None:
        """Go back to the first step."""
        self._ask(do="reset")

    def params(self) -> Array:
        """Return the parameters as our flat buffer."""
        path = self._folder / "params.npy"
        self._ask(do="params", path=str(path))
        flat: Array = np.load(path, allow_pickle=False)
        return flat

    def peak_bytes(self) -> int | None:
        """Return the peak of its memory above an interpreter with NumPy."""
        peak: int | None = self._ask(do="memory")["peak_bytes"]
        return peak

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._closing.close()


@contextmanager
def started(
    contestants: Iterable[tuple[Contestant, Case | None]], threads: Sequence[int], say: Callable[[str], None]
) -> Iterator[tuple[list[Process], list[dict[str, Any]]]]:
    """Start a worker for each contestant and number of threads, one after the other; yield them and who was skipped."""
    with ExitStack() as stack:
        processes: list[Process] = []
        skipped: list[dict[str, Any]] = []
        for contestant, case in contestants:
            for n in threads:
                say(f"starting {contestant.key}, threads: {n}")
                try:
                    process = Process(contestant, case, n)
                except SkippedError as reason:
                    skipped.append(skip(contestant, n, reason))
                    continue
                stack.callback(process.close)
                processes.append(process)
        yield processes, skipped


def rounds_of_turns(
    processes: list[Process],
    skipped: list[dict[str, Any]],
    *,
    rounds: int,
    steps: Callable[[Process], int],
    say: Callable[[str], None],
) -> None:
    """Let every worker run its steps in turn, `rounds` times after one that warms up; who fails is skipped."""
    for round_ in range(rounds + 1):
        say(f"round {round_} of {rounds}")
        for process in tuple(processes):
            try:
                reading = process.run(steps(process))
            except SkippedError as reason:
                processes.remove(process)
                skipped.append(skip(process.contestant, process.threads, reason))
                continue
            if round_:
                process.readings.append(reading)


def skip(contestant: Contestant, threads: int, reason: SkippedError) -> dict[str, Any]:
    """Say who was skipped and why."""
    identity = {"engine": contestant.name, "precision": contestant.precision, "threads": threads}
    return {**identity, "reason": str(reason)}
