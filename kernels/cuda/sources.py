"""The kernels' source texts, whole, and the options that NVRTC compiles them with."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

__all__ = ["FILES", "options", "source_of"]

# name -> whether its kernels differ by precision
FILES = {
    "rng": False,
    "gather": False,
    "dense": True,
    "latent": False,
    "likelihood": False,
    "optimizer": False,
    "phases": True,
    "sample": True,
    "passes": True,
}
_FOLDER = Path(__file__).parent
_MACROS = {"fp32": 0, "tf32": 1, "bf16": 2}  # common.cuh's
_INCLUDE = re.compile(r'#include "(\w+\.cuh)"')


@cache
def source_of(file: str) -> str:
    """Return a ``.cu`` file with what it includes in place: NVRTC looks in no folder, and a cache sees every edit."""
    seen: set[str] = set()

    def expanded(name: str) -> str:
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate((_FOLDER / name).read_text().splitlines(), start=1):
            include = _INCLUDE.match(line)
            if include is None:
                lines.append("" if line == "#pragma once" else line)
            elif include[1] not in seen:
                seen.add(include[1])
                lines += [expanded(include[1]), f'#line {number + 1} "{name}"']
            else:
                lines.append("")
        return "\n".join(lines)

    return expanded(f"{file}.cu") + "\n"


def options(file: str, precision: str) -> tuple[str, ...]:
    """Return the compiler's options; kernels that do not differ are compiled as fp32, once for all."""
    return ("-std=c++17", f"-DFASTVAE_PRECISION={_MACROS[precision if FILES[file] else 'fp32']}")
