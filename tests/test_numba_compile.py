"""Compiled code of the Numba engine: kept on disk, renewed with the sources, and done without where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvae import backends

pytestmark = pytest.mark.skipif(backends.unavailable("numba") is not None, reason=str(backends.unavailable("numba")))

DRAW = """
import sys, numpy as np
from fastvae import backends, rng
from fastvae.kernels.numba_cpu import compile, operations
compile._DIGEST += sys.argv[1]
out = np.empty(9, np.float32)
backends.load("numba").normal(seed=1, step=2, stream=0, out=out)
np.testing.assert_allclose(out, rng.normal(seed=1, step=2, stream=0, shape=(9,)), rtol=1e-6)
print(len(operations.normal.stats.cache_hits))
"""


def run_script(script: str, *arguments: str, **variables: str | Path) -> str:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, "-P", "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_machine_code_is_kept_until_a_source_changes(tmp_path: Path) -> None:
    """Of any file of the engine: here only the checksum over all of them differs."""
    changes = ["", "", "another", "another"]
    assert [run_script(DRAW, change, NUMBA_CACHE_DIR=tmp_path) for change in changes] == ["0", "1", "0", "1"]


def test_no_folder_to_keep_it_in_is_no_error() -> None:
    nowhere = "from numba.core import caching; caching.CompileResultCacheImpl._locator_classes = []"
    assert run_script(nowhere + DRAW, "") == "0"


def test_numba_without_its_compiler_is_named() -> None:
    script = "from fastvae import backends; print(backends.unavailable('numba'))"
    assert "unset NUMBA_DISABLE_JIT" in run_script(script, NUMBA_DISABLE_JIT="1")
