"""The package as a newcomer gets it: light import, true stub, an install from the wheel in a clean environment."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import fastvae
from fastvae.kernels import Engine, Plan

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("sklearn", "scipy", "numba", "cupy", "matplotlib", "torch", "tqdm", "click")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_version_has_one_source() -> None:
    assert fastvae.__version__ == version("fastvae")


def test_import_is_light(tmp_path: Path) -> None:
    code = f"import sys, fastvae; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "[]"


def stub_arguments(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


@pytest.mark.parametrize("protocol", [Plan, Engine])
def test_stub_of_the_native_module_is_the_contract(protocol: type) -> None:
    module = ast.parse(files("fastvae").joinpath("_native.pyi").read_text())
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    body = classes["Plan"].body if protocol is Plan else module.body
    stub = {node.name: stub_arguments(node) for node in body if isinstance(node, ast.FunctionDef)}
    for name, function in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_"):
            expected = [argument for argument in inspect.signature(function).parameters if argument != "self"]
            assert [argument for argument in stub[name] if argument != "self"] == expected, name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_wheel_installs_in_a_clean_environment(tmp_path: Path, backend: str) -> None:
    """The wheel alone, with what it declares, trains outside the repository: on Numba where it found no compiler."""
    compiler = {} if backend == "cpp" else {"CXX": str(tmp_path / "no-compiler")}
    options = ["--quiet", "--no-deps", "-w", str(tmp_path), "-C", f"build-dir={tmp_path / 'build'}"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(REPOSITORY)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **compiler},
    )
    if "No matching distribution" in built.stderr or "NewConnectionError" in built.stderr:
        pytest.skip("the build's own requirements cannot be downloaded here")
    assert built.returncode == 0, built.stderr[-4000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastvae/kernels/cuda/dense.cu", "fastvae/kernels/cuda/ptx.cuh"} <= set(names)
    assert {f"fastvae/report/{name}" for name in ("page.html", "report.css", "report.js", "explorer.js")} <= set(names)
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    train = [
        "train",
        "--epochs",
        "2",
        "--hidden",
        "16",
        "--latent-dim",
        "2",
        "--backend",
        "auto",
        "--json",
        "--out",
        "r",
    ]
    done = subprocess.run(
        [tmp_path / "clean" / "bin" / "fastvae", *train], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["backend"] == backend
    assert result["epochs"] == 2
    assert ("backend 'cpp' cannot be imported" in done.stderr) == (backend == "numba")
    run(python, "-m", "fastvae.bench", "--help", cwd=tmp_path)


def test_the_source_folder_says_that_it_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "fastvae").symlink_to(REPOSITORY / "fastvae")
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]; "
    done = subprocess.run(
        [sys.executable, "-c", code + "import fastvae"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is fastvae's source folder, not an installed fastvae" in done.stderr.splitlines()[-1]
