"""The package as a newcomer gets it: light import, true stub, an install from the wheel in a clean environment."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
from command_line import COMMAND

import fastvae
from fastvae.kernels import Engine, Plan

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("sklearn", "scipy", "numba", "cupy", "matplotlib", "torch", "tqdm", "click")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_version_has_one_source(tmp_path: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    printed = run(*COMMAND, "--version", cwd=tmp_path)
    assert printed == f"fastvae {fastvae.__version__}\n"
    assert fastvae.__version__ == version("fastvae") == project["version"]


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


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel with the C++ engine built from it."""
    folder = tmp_path_factory.mktemp("dist")
    options = ("--outdir", str(folder), "-C", "cmake.define.FASTVAE_NATIVE=ON")
    _build(sys.executable, "-m", "build", *options, str(REPOSITORY))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def _build(*command: str, **environment: str) -> None:
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    output = done.stdout + done.stderr
    if "No matching distribution" in output or "NewConnectionError" in output:
        pytest.skip("the build's own requirements cannot be downloaded here")
    assert done.returncode == 0, output[-4000:]


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Callable[..., str]]:
    """Install a wheel with what it declares into an environment of nothing else, where there are no compilers."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"

    def install(wheel: Path) -> Callable[..., str]:
        python = programs / "python"
        run(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
        run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel, cwd=folder)

        def call(program: str, *args: str | Path) -> str:
            env = {"PATH": str(programs), "HOME": str(folder)}
            command = [programs / program, *args]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
            assert done.returncode == 0, done.stderr[-4000:]
            return done.stdout + done.stderr

        return call

    return install


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_what_they_should(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    names = set(zipfile.ZipFile(wheel).namelist())
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
    folders = {"fastvae": "fastvae", "kernels": "fastvae/kernels", "bench": "fastvae/bench"}
    left_out = re.compile(r"fastvae/bench/(results/|test_)")
    sources = {f"{folders[top]}/{rest}" for top, _, rest in (name.partition("/") for name in tracked) if top in folders}

    packaged = {name for name in names if not name.endswith("/") and ".dist-info/" not in name}
    (native,) = (name for name in packaged if name.startswith("fastvae/_native.") and name.endswith(".so"))
    if tracked:
        assert packaged - {native} == {name for name in sources if not left_out.match(name)}
    assert {Path(name).suffix for name in packaged} >= {".py", ".pyi", ".cu", ".cuh", ".csv", ".typed"}
    assert {name for name in names if name.endswith("licenses/LICENSE")}
    assert not [name for name in names if re.search("tests?/|docs/|results/", name)]
    with tarfile.open(sdist) as archive:
        contents = {name.partition("/")[2] for name in archive.getnames()}
    assert contents >= {
        "LICENSE",
        "README.md",
        "CMakeLists.txt",
        "cpp/kernels.cpp",
        "kernels/cuda/dense.cu",
        "PKG-INFO",
    }
    assert not [name for name in contents if name.startswith((".ci", ".git/", ".github", "build/", "dist/", "runs/"))]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_wheel_works_where_nothing_else_is(
    distributions: tuple[Path, Path], clean: Callable[[Path], Callable[..., str]], tmp_path: Path, backend: str
) -> None:
    """The wheel alone, with what it declares, trains outside the repository: on Numba where it found no compiler."""
    sdist, wheel = distributions
    if backend == "numba":
        options = ("--quiet", "--no-deps", "-w", str(tmp_path))
        _build(sys.executable, "-m", "pip", "wheel", *options, str(sdist), CXX=str(tmp_path / "no-compiler"))
        (wheel,) = tmp_path.glob("*.whl")
    call = clean(wheel)

    assert f"default_backend    {backend}" in call("fastvae", "info")
    assert "fastvae 0." in call("python", REPOSITORY / ".ci" / "check_wheel.py", backend, "reference")
    options = ("--epochs", "1", "--hidden", "16", "--latent-dim", "2", "--backend", "auto")
    printed = call("fastvae", "train", *options, "--out", tmp_path / "run")
    assert f"backend                 {backend}" in printed
    assert ("backend 'cpp' cannot be imported" in printed) == (backend == "numba")
    call("python", "-m", "fastvae.bench", "--help")


USER_SCRIPT = '''
"""What a user writes, with types."""

from typing import assert_type

import numpy as np

from fastvae import VAE, Network, Optimizer, __version__
from fastvae.callbacks import Callback
from fastvae.data import Dataset, Split, load
from fastvae.evaluation import Bound, LogLikelihood
from fastvae.model import Model


class Stop(Callback):
    def after_steps(self, model: Model, step: int) -> None:
        print(step, model.n_steps_)


split = load("digits")
assert_type(split, Split)
assert_type(split.train, Dataset)
vae = VAE(latent_dim=2, hidden_dims=(16,), optimizer=Optimizer("adam", 0.001), callbacks=[Stop()], random_state=0)
fitted: VAE = vae.fit(split.train, eval_set=split.test)
codes: np.ndarray = fitted.transform(split.train)
bound: Bound = fitted.evaluate(split.train, n_draws=3)
log_px: LogLikelihood = fitted.log_likelihood(split.train, n_draws=100)
network: Network = fitted.network_
mean: float = fitted.score(split.train)
version: str = __version__
print(codes.shape, bound.summary(), log_px.summary(), network.latent_dim, mean, version)
'''


@pytest.mark.slow
def test_a_typed_program_passes_mypy_strict_and_runs(
    distributions: tuple[Path, Path], clean: Callable[[Path], Callable[..., str]], tmp_path: Path
) -> None:
    """Beside the installed wheel, whose types the program sees; a wrong use is found."""
    pytest.importorskip("mypy")
    call = clean(distributions[1])
    (tmp_path / "right.py").write_text(USER_SCRIPT)
    (tmp_path / "wrong.py").write_text(USER_SCRIPT.replace("latent_dim=2", 'latent_dim="2"'))
    python = call("python", "-c", "import sys; print(sys.executable)").strip()

    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "right.py", "wrong.py"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert re.findall(r"^(.*?):\d+: error: .*\[(.*)\]$", done.stdout, re.MULTILINE) == [("wrong.py", "arg-type")]
    assert "(1500, 2)" in call("python", tmp_path / "right.py")


def test_windows_is_refused_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.platform = 'win32'; import fastvae"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastvae runs on Linux and macOS; on Windows, install")


def test_the_source_folder_says_that_it_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "fastvae").symlink_to(REPOSITORY / "fastvae")
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]; "
    done = subprocess.run(
        [sys.executable, "-c", code + "import fastvae"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is fastvae's source folder, not an installed fastvae" in done.stderr.splitlines()[-1]
