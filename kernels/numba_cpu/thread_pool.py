"""A team of threads for one call: Python threads that run one compiled function side by side without the interpreter.

Not Numba's parallel loops: entering one costs about 50 us on two cores, and a step has a dozen phases; and no OpenMP,
whose runtimes hang beside another library's. Threads live for one call, so that nothing is left over after it or after
a fork. Between phases they meet at a barrier of atomic words, spinning for a moment before they give the processor up.

The calling thread only waits, so that Python's signal handlers run in it while the team works.
"""

from __future__ import annotations

import _thread
import platform
import threading
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastvae.errors import BackendError
from fastvae.kernels.numba_cpu.compile import compiled, entry, pointer_at

__all__ = ["Team", "barrier", "begin", "due", "end", "proceed", "run_team"]

_SPINS = 2000  # some 10 us
_NEVER = 2**62
# Words of `control`, a cache line apart: members that have arrived, barriers passed, the caller's wish to stop, what
# member 0 made of it, and the barrier to stop at.
_ARRIVED, _PASSED, _STOP, _CUT, _STOP_AT = (64 * i for i in range(5))
_WORDS = 5 * 8


class Team(NamedTuple):
    """One member's view of the team: number `member` of `size`, and the address of the control words."""

    member: int
    size: int
    control: int


def _word(builder: Any, address: Any) -> Any:
    return builder.bitcast(pointer_at(builder, address), ir.PointerType(ir.IntType(64)))


@intrinsic
def _load(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store(typing_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _increment(typing_context: Any, address: Any) -> Any:
    """Add 1 and return the value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, arguments[0]), ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def _flush_denormals(typing_context: Any) -> Any:
    """Make denormals zero on this thread (x86 alone: bits 6 and 15 of its control word)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            word, byte = ir.IntType(32), ir.PointerType(ir.IntType(8))
            place = builder.alloca(word)
            for name in ("llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr"):
                function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), name)
                builder.call(function, [builder.bitcast(place, byte)])
                if name.endswith("stmxcsr"):
                    builder.store(builder.or_(builder.load(place), ir.Constant(word, 0x8040)), place)
        return context.get_dummy_value()

    return types.void(), generate


_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@compiled
def begin(team: Team, n: int) -> int:
    """First of this member's share of n tasks."""
    return n * team.member // team.size


@compiled
def end(team: Team, n: int) -> int:
    """One past the last of this member's share of n tasks."""
    return n * (team.member + 1) // team.size


@compiled
def barrier(team: Team) -> int:
    """Wait for every member; return the number of barriers passed before this one."""
    passed = _load(team.control + _PASSED)
    if _increment(team.control + _ARRIVED) == team.size - 1:
        _store(team.control + _ARRIVED, 0)
        _store(team.control + _PASSED, passed + 1)
        return passed
    spins = 0
    while _load(team.control + _PASSED) == passed:
        spins += 1
        if spins > _SPINS:
            _yield_processor()
    return passed


@compiled
def due(team: Team) -> bool:
    """Whether tasks not begun are to be left out. Member 0 hears of the caller's wish, the others from it."""
    if team.member == 0 and _load(team.control + _STOP):
        _store(team.control + _CUT, 1)
    return _load(team.control + _CUT) != 0


@compiled
def proceed(team: Team) -> bool:
    """End a phase that may be the last: False on every member when an interrupt is due.

    Member 0 names the barrier to stop at, so that a member still leaving it is not misled by a later decision.
    """
    if team.member == 0 and due(team) and _load(team.control + _STOP_AT) == _NEVER:
        _store(team.control + _STOP_AT, _load(team.control + _PASSED))
    return barrier(team) < _load(team.control + _STOP_AT)


@entry
def _start_member() -> None:
    """Prepare a member's thread."""
    _flush_denormals()


def run_team(size: int, function: Any, *arguments: Any) -> None:
    """Run ``function(team, *arguments)`` on every member of a team of `size` threads.

    An exception that a signal handler raises in the calling thread makes the team stop at the end of the last whole
    step, and comes through after that.

    Raises
    ------
    BackendError
        The system refuses to start that many threads.
    """
    control = np.zeros(_WORDS + 8, np.int64)
    address = -(-control.ctypes.data // 64) * 64
    words = control[(address - control.ctypes.data) // 8 :]
    words[_STOP_AT // 8] = _NEVER
    if not function.overloads:  # one specialisation each; compiled here, where Ctrl-C is answered
        _start_member.compile(())
        function.compile(tuple(map(typeof, (Team(0, size, address), *arguments))))

    gate, finished, count = threading.Event(), threading.Event(), threading.Lock()
    failures: list[BaseException] = []
    launched, left = False, size

    def work(member: int) -> None:
        nonlocal left
        gate.wait()
        if not launched:
            return
        try:
            _start_member()
            function(Team(member, size, address), *arguments)
        except BaseException as failure:  # for the caller to raise
            failures.append(failure)
        finally:
            with count:
                left -= 1
                if left == 0:
                    finished.set()

    try:
        for member in range(size):
            _thread.start_new_thread(work, (member,))
        launched = True
        gate.set()
        finished.wait()
    except BaseException as failure:
        while True:  # until no thread writes to the caller's arrays
            try:
                words[_STOP // 8] = 1
                gate.set()
                if launched:
                    finished.wait()
                break
            except BaseException:  # the first exception is on its way already
                continue
        if not launched and isinstance(failure, RuntimeError | MemoryError):
            raise BackendError(f"cannot start {size} threads ({failure}): lower n_threads") from failure
        raise
    if failures:
        raise failures[0]
