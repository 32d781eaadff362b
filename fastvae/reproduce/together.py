"""Several experiments side by side, each in a process of its own: two on a core each go further than one on both."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any

from fastvae.errors import FastvaeError, one_line
from fastvae.reproduce.paper import Experiment
from fastvae.reproduce.run import Machine, run

__all__ = ["run_all"]

_POLL_SECONDS = 0.5


def run_all(
    experiments: Sequence[Experiment], folder: Path, machine: Machine, *, jobs: int, say: Callable[[str], None]
) -> None:
    """Run experiments in subfolders, `jobs` at a time; each goes on from where an earlier run of it stopped.

    Parameters
    ----------
    experiments : sequence of Experiment
        The first ones begin first.
    folder : Path
    machine : Machine
        Its threads are those of each.
    jobs : int
    say : callable
        Told a line now and then.

    Raises
    ------
    FastvaeError
        One of them failed; the others ran to their end.
    KeyboardInterrupt
        After Ctrl-C, once all have saved their state.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    waiting, running, failed = list(experiments), dict[str, Any](), dict[str, str]()
    progress = _Progress(experiments, say)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                experiment = waiting.pop(0)
                process = context.Process(target=_child, args=(experiment, folder / experiment.name, machine, messages))
                process.start()
                running[experiment.name] = process
            # Looked at before the messages, so that those of a process that has ended are read once it counts as ended.
            ended = [name for name, process in running.items() if not process.is_alive()]
            timeout = 0.0 if ended else _POLL_SECONDS
            with suppress(Empty):
                while True:
                    name, samples, line, error = messages.get(timeout=timeout)
                    timeout = 0.0
                    progress.update(name, samples, line)
                    if error:
                        failed[name] = error
            for name in ended:
                code = running.pop(name).exitcode
                if code and name not in failed:
                    failed[name] = f"its process ended with code {code}"
    except BaseException as error:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("interrupted; the same command goes on from there") from None
        raise
    if failed:
        raise FastvaeError("; ".join(f"{name} failed: {error}" for name, error in failed.items()))


def _child(experiment: Experiment, folder: Path, machine: Machine, messages: Any) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Ctrl-C reaches all processes of the terminal; whoever started this one passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run(experiment, folder, machine, lambda samples, line: messages.put((experiment.name, samples, line, "")))
    except KeyboardInterrupt:
        # The state is saved. A put may have been cut so that the queue's thread, which an exit waits for, sleeps on.
        os._exit(130)
    except Exception as error:
        messages.put((experiment.name, None, "", one_line(error)))
        raise SystemExit(1) from None


class _Progress:
    """Lines about the points measured, with the time left by the speed so far."""

    def __init__(self, experiments: Sequence[Experiment], say: Callable[[str], None]) -> None:
        self.goals = {experiment.name: experiment.n_samples for experiment in experiments}
        self.done: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.started, self.say = monotonic(), say

    def update(self, name: str, samples: int | None, line: str) -> None:
        if samples is None:
            return
        self.first.setdefault(name, samples)
        self.done[name] = samples
        if line:
            share = 100 * sum(self.done.values()) / sum(self.goals.values())
            self.say(
                f"{name}: {samples:,} of {self.goals[name]:,} samples  {line}  ({share:.0f} % of all{self._left()})"
            )

    def _left(self) -> str:
        made = sum(self.done[name] - self.first[name] for name in self.done)
        left = sum(goal - self.done.get(name, 0) for name, goal in self.goals.items())
        if not made:
            return ""
        minutes = left * (monotonic() - self.started) / made / 60
        return f", {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"
