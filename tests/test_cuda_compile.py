"""Every CUDA kernel compiled by NVRTC for the oldest architecture supported and for Hopper; it needs no GPU."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import pytest

from fastvae.bench.gpu_constants import BARRIER_SOURCE
from fastvae.kernels.cuda.sources import FILES, options, source_of

nvrtc: Any = pytest.importorskip(
    "cuda.bindings.nvrtc", reason="no NVRTC: install the extra 'test'", exc_type=ImportError
)

VARIANTS = [
    (file, precision)
    for file, differs in FILES.items()
    for precision in ("fp32", "tf32", "bf16")[: 3 if differs else 1]
]
ARCHITECTURES = ["sm_80", "sm_90"]
# What CuPy adds by itself.
CUPYS_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
# Registers of a multiprocessor, and the most shared memory that a block may have, on sm_80 and on sm_90.
REGISTERS = 65536
SHARED_BYTES = 163 * 1024
# Threads of a multiprocessor that the registers must leave room for, so that one block's waits are another's work.
RESIDENT_THREADS = 512


class Kernel(NamedTuple):
    """What ptxas says of one."""

    registers: int
    stack: int
    spills: int


def report_of(source: str, name: str, flags: tuple[str, ...], architecture: str) -> dict[str, Kernel]:
    """Compile, and read ptxas's report."""
    status, program = nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, [], [])
    assert status == 0
    flags = (*flags, *CUPYS_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
    size = nvrtc.nvrtcGetProgramLogSize(program)[1]
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.decode().rstrip("\0 ")
    assert status == 0, text
    assert "warning" not in text, text
    report = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        re.DOTALL,
    )
    found = report.findall(text)
    return {name: Kernel(int(used), int(stack), int(stores) + int(loads)) for name, stack, stores, loads, used in found}


@cache
def compiled(file: str, precision: str, architecture: str) -> dict[str, Kernel]:
    """The kernels of a file of the engine."""
    found = report_of(source_of(file), file, options(file, precision), architecture)
    assert found.keys() == set(re.findall(r"^(?:AHEAD_)?KERNEL\((\w+),", source_of(file), re.MULTILINE))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("file", "precision"), VARIANTS)
def test_nothing_spills(file: str, precision: str, architecture: str) -> None:
    for name, kernel in compiled(file, precision, architecture).items():
        assert kernel.spills == 0, f"{name} spills {kernel.spills} bytes"
        assert kernel.stack == 0, f"{name} keeps {kernel.stack} bytes in local memory"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("file", "precision"), VARIANTS)
def test_registers_leave_room_for_other_blocks(file: str, precision: str, architecture: str) -> None:
    for name, kernel in compiled(file, precision, architecture).items():
        assert kernel.registers * RESIDENT_THREADS <= REGISTERS, f"{name} takes {kernel.registers} registers"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_barrier_of_the_bench_compiles(architecture: str) -> None:
    """As CuPy compiles it: without an option."""
    (kernel,) = report_of(BARRIER_SOURCE.read_text(), "constants", (), architecture).values()
    assert kernel.spills == kernel.stack == 0
    assert kernel.registers * 256 <= REGISTERS
