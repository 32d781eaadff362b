"""The process that runs one engine or peer: it answers requests, one JSON object a line, and sleeps in between.

The first line of stdin says what to run. It is run as a file, so that the imports below can be timed one by one.

A *runner* is what a module's ``make(case, data, n_threads=..., **options)`` returns: ``run(order)`` makes one step per
row of `order`, which holds the row numbers of its minibatch. Those of training also have ``reset()``, back to the first
step, and ``params()``, our flat buffer; one may have ``phases()``, the seconds spent in each phase since it was last
asked, and ``info``, what else is to be reported.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def _memory(field: str) -> int | None:
    """Return a figure of /proc/self/status in bytes, or None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


class _Worker:
    def __init__(self, spec: dict[str, Any]) -> None:
        if hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, allowed[-spec["threads"] :])
        self.idle = _memory("VmRSS")
        start = perf_counter()
        for name in spec["imports"]:
            import_module(name)
        imported = perf_counter() - start

        from fastvae.bench.cases import Case
        from fastvae.bench.data import Minibatches

        case = Case.from_dict(spec["case"]) if spec["case"] else None
        data = case.load() if case else None
        self.minibatches = Minibatches(data.n_rows, case.batch_size) if case and data else Minibatches(1, 1)
        first = self.minibatches.take(1)
        start = perf_counter()
        self.runner = import_module(spec["module"]).make(case, data, n_threads=spec["threads"], **spec["options"])
        self.runner.run(first)
        self.ready = {
            "import_seconds": imported,
            "first_step_seconds": imported + perf_counter() - start,
            **({"data": data.name, "rows": data.n_rows, "bytes": case.n_bytes(data)} if case and data else {}),
            **getattr(self.runner, "info", {}),
        }

    def run(self, steps: int) -> dict[str, Any]:
        """Make steps; the wall time is theirs alone."""
        order = self.minibatches.take(steps)
        phases = getattr(self.runner, "phases", lambda: None)
        phases()
        start = perf_counter()
        self.runner.run(order)
        return {"seconds": perf_counter() - start, "phases": phases()}

    def reset(self) -> dict[str, Any]:
        """Start anew: parameters, optimizer and order of the minibatches."""
        self.runner.reset()
        self.minibatches.restart()
        return {}

    def params(self, path: str) -> dict[str, Any]:
        """Write the parameters to a file."""
        np.save(path, self.runner.params())
        return {}

    def memory(self) -> dict[str, Any]:
        """Return the peak so far above the interpreter with NumPy."""
        peak = _memory("VmHWM")
        return {"peak_bytes": None if peak is None or self.idle is None else peak - self.idle}


def main() -> None:
    """Answer the parent until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    worker: _Worker | None = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if worker is None:
                worker = _Worker(request)
                answer = worker.ready
            else:
                answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__, "type": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
