"""The GPU's bench as far as it goes without one: its peers train our model, its report judges by its figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import cuda_host
import numpy as np
import pytest
from click.testing import CliRunner
from cuda_host import fake_cupy

from fastvae import backends
from fastvae.bench import gpu, gpu_constants, gpu_run, gpu_targets
from fastvae.bench.cases import Case
from fastvae.bench.data import Minibatches, grey_levels
from fastvae.cli.commands import run as fastvae
from fastvae.data import as_dataset
from fastvae.kernels import STEP_ESTIMATORS
from fastvae.network import Network
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal

# so small an epsilon that it does not matter whether it is added inside the root or outside
OPTIMIZER = Optimizer("adagrad", learning_rate=0.01, epsilon=1e-14)
CASE = Case("small", "A step for tests", Network(40, 3, (20,), (15,)), 16, 1, optimizer=OPTIMIZER)
SPREAD = ("p20", "p50", "p80")
DATA = as_dataset(grey_levels(100, 40), scale=1 / 255)
ORDER = Minibatches(100, 16).take(6)


def our_steps(engine: Any = None) -> gpu.OurSteps:
    engine = engine or backends.load("reference")
    plan = engine.plan(CASE.network, rows=16, draws=1, precision="fp32", n_threads=1)
    return gpu.OurSteps(CASE, DATA, ORDER, plan, np.array)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["eager", "compile graph"])
def test_torch_makes_our_steps(variant: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound by bound with our noise, on the CPU; what the compiler and a graph make of them is not asked here."""
    torch = pytest.importorskip("torch")
    from fastvae.bench.gpu_torch import TorchSteps

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    steps = TorchSteps(CASE, DATA, ORDER, precision=precision, variant=variant, device="cpu")
    ours = our_steps()
    ours.run(len(ORDER))
    for step, (log_px, kl) in enumerate(ours.stats):
        steps.eps = torch.from_numpy(normal(seed=0, step=step, stream=Stream.LATENT, shape=(16, 3)).astype(np.float32))
        assert steps.run(1) == 1
        assert steps.bound() == pytest.approx(log_px - kl, rel=1e-4 if precision == "fp32" else 1e-2)


def by_host(work: Any) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_steps_are_timed_and_their_bound_is_told() -> None:
    line = gpu.measured(our_steps(cuda_host), by_host, turns=2, seconds=0.01)
    step = line["us_per_step"]
    assert 0 < step["p20"] <= step["p50"] <= step["p80"]
    assert -40 < line["bound"] < 0
    assert line["steps_of_a_turn"] >= 3


JAX_STEPS = """
import test_bench_gpu as t
from fastvae.bench import gpu
for precision, unroll in (("tf32", 1), ("bf16", 3)):
    steps = gpu._JaxSteps(t.CASE, t.DATA, t.ORDER, precision=precision, unroll=unroll)
    assert steps.run(7) == 12
    assert -40 < steps.bound() < 0
"""


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_a_whole_run_is_timed_and_added_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "ours.json"
    target.write_text(json.dumps({"steps": [1], "versions": {}}))
    monkeypatch.setattr(gpu, "TARGET_SHAPES", ((3, 5),))
    monkeypatch.setattr(Case, "load", lambda case: as_dataset(grey_levels(10, 784), scale=1 / 255))
    with fake_cupy.installed(monkeypatch):
        done = CliRunner().invoke(gpu.main, ["run", "--samples", "40", "--json", str(target)])
        assert done.exit_code == 0, done.output
        result = json.loads(target.read_text())
        assert result["steps"] == [1]
        assert result["run"]["samples"] == 45  # whole epochs of nine rows
        monkeypatch.setattr(gpu, "SWEEP_SHAPES", ((4, 5),))
        target.write_text(json.dumps({"versions": {}, "run": result["run"]}))  # where the part before it has failed
        done = CliRunner().invoke(
            gpu.main, ["steps", "ours", "--sweep", "--go-on", "--seconds", "0", "--json", str(target)]
        )
        assert done.exit_code == 0, done.output
    added = json.loads(target.read_text())
    assert added["run"] == result["run"]
    assert {line["M"] for line in added["left_out"]} == {4}
    assert 0 < result["run"]["seconds_in_engine"] < result["run"]["seconds"]


def test_a_run_ends_in_time() -> None:
    plan = backends.load("reference").plan(CASE.network, rows=16, draws=1, precision="fp32", n_threads=1)
    assert gpu_run.whole_run(CASE, DATA, plan, samples=10**9, seconds=0.0)["samples"] == 96


def test_what_the_host_does_is_timed_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "load", lambda case: as_dataset(grey_levels(200, case.network.data_dim), scale=1 / 255))
    done = CliRunner().invoke(gpu.main, ["host", "--samples", "1000"])
    assert done.exit_code == 0, done.output
    line = r"\w+, [\w-]+: the host takes \d+\.\d us for a step, \d+\.\d with a halt after every epoch\n"
    assert re.fullmatch(f"({line}){{3}}", done.output)


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_jax_makes_whole_passes() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command, folder = [sys.executable, "-c", JAX_STEPS], Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# --- the report ------------------------------------------------------------------------------------------------------


def line(who: str, shape: tuple[int, int], precision: str, us: float) -> dict[str, Any]:
    step = {"p20": us, "p50": us, "p80": us}
    flops = gpu.case_of(*shape).flops
    return {
        "who": who,
        "M": shape[0],
        "H": shape[1],
        "precision": precision,
        "us_per_step": step,
        "tflops": flops / us / 1e6,
    }


LINES = [
    line("fastvae own", (100, 500), "bf16", 20.0),
    line("fastvae cublas", (100, 500), "bf16", 90.0),
    line("torch eager graph", (100, 500), "bf16", 100.0),
    line("jax scan", (100, 500), "bf16", 70.0),
    line("jax scan", (100, 500), "fp32", 10.0),
    line("fastvae own", (100, 500), "fp32", 20.0),
    line("fastvae cublas", (4096, 500), "bf16", 100.0),
    line("jax scan", (4096, 500), "bf16", 151.0),
    line("fastvae cublas", (4096, 4096), "bf16", 300.0),
]
CONSTANTS = {"products_tflops": [{"m": 8192, "n": 8192, "k": 8192, "precision": "bf16", "p50": 700.0}]}


def test_targets_are_judged_by_the_best_of_either_side() -> None:
    run = {"samples": 100_000_000, "seconds": 21.0}
    judged = [(t["verdict"], t["value"]) for t in gpu_targets.judged(LINES, CONSTANTS, run)]
    share = gpu.case_of(4096, 4096).flops / 300 / 1e6 / 700
    assert judged == [
        ("missed", 3.5),
        ("missed", 0.5),
        ("met", 20.0),
        ("met", 21.0),
        ("met", 1.51),
        ("not measured", None),
        ("not measured", None),
        ("not measured", None),
        ("met" if share >= 0.6 else "missed", pytest.approx(share)),
    ]
    assert {t["verdict"] for t in gpu_targets.judged([], {}, {})} == {"not measured"}


def test_a_run_that_was_cut_is_judged_by_its_pace() -> None:
    target = gpu_targets.judged([], {}, {"samples": 50_000_000, "seconds": 21.0})[3]
    assert (target["verdict"], target["value"]) == ("missed", 42.0)
    assert "of the first 5e+07" in target["figures"]


def test_ratios_are_to_the_best_peer_of_the_same_precision() -> None:
    first, second, peer, *_ = gpu_targets.with_ratios(LINES)
    assert (first["best_peer"], first["best_peer_over_this"]) == ("jax scan", 3.5)
    assert second["best_peer_over_this"] == pytest.approx(70 / 90)
    assert "best_peer" not in peer


def test_the_command_is_one_of_fastvae_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert fastvae(["bench", "gpu", "steps", "--help"]) == 0
    assert "[ours|torch|jax]" in capsys.readouterr().out.replace("{", "[").replace("}", "]")
    assert fastvae(["bench", "gpu", "steps", "tensorflow", "--json", "x"]) != 0
    assert "tensorflow" in capsys.readouterr().err


def test_report_joins_what_there_is(tmp_path: Path) -> None:
    constants, steps, joined = (tmp_path / f"{name}.json" for name in ("constants", "steps", "gpu"))
    constants.write_text(json.dumps({"device": "A device", "versions": {"numpy": "2"}, "constants": CONSTANTS}))
    left_out, failed = [{"who": "jax scan"}], [{"who": "torch", "reason": "none"}]
    document = {"versions": {"torch": "2"}, "steps": LINES, "failed": failed, "left_out": left_out}
    steps.write_text(json.dumps(document))
    files = [str(constants), str(steps), str(tmp_path / "jax.json")]
    done = CliRunner().invoke(gpu.main, ["report", *files, "--json", str(joined)])
    assert done.exit_code == 0, done.output
    assert "M=100, H=500, bf16: at most 25 us per step: met (20 us)" in done.output
    result = json.loads(joined.read_text())
    assert (result["device"], result["versions"]) == ("A device", {"numpy": "2", "torch": "2"})
    assert (result["missing"], result["failed"], result["left_out"]) == (["jax.json"], failed, left_out)
    assert result["crossover_flops"].keys() == {"fp32", "tf32", "bf16"}


# --- the command, on a stand-in for CuPy -----------------------------------------------------------------------------


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_our_steps_are_measured_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that fails takes no other with it."""
    monkeypatch.setattr(gpu, "_PRECISIONS", ("bf16", "fp8"))
    monkeypatch.setattr(gpu, "TARGET_SHAPES", ((3, 5),))
    target = tmp_path / "ours.json"
    monkeypatch.setitem(gpu._WHO, "ours", (gpu._ours, by_host, "host"))
    monkeypatch.setattr(gpu, "_TURNS", (2, 0.01))
    monkeypatch.setattr(Case, "load", lambda case: as_dataset(grey_levels(30, 784), scale=1 / 255))
    with fake_cupy.installed(monkeypatch):
        done = CliRunner().invoke(gpu.main, ["steps", "ours", "--json", str(target)])
        assert done.exit_code == 0, done.output
        result = json.loads(target.read_text())
        ways = ["fastvae own overlap", "fastvae own", "fastvae cublas"]
        assert [(one["who"], one["precision"]) for one in result["steps"]] == [(way, "bf16") for way in ways]
        assert [one["is_default"] for one in result["steps"]] == [False, True, False]
        assert "has precisions fp32, tf32, bf16, not 'fp8'" in result["failed"][0]["reason"]
        done = CliRunner().invoke(gpu.main, ["steps", "ours", "--seconds", "0", "--json", str(target)])
        assert len(json.loads(target.read_text())["left_out"]) == 6
        monkeypatch.setattr(gpu, "SWEEP_SHAPES", ((4, 5), (5, 5)))
        done = CliRunner().invoke(
            gpu.main, ["steps", "ours", "--sweep", "--go-on", "--seconds", "0", "--json", str(target)]
        )
        assert [line["M"] for line in json.loads(target.read_text())["left_out"]] == [3] * 6 + [4, 5] * 6


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_every_estimator_is_timed_and_added_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "ours.json"
    target.write_text(json.dumps({"steps": [1], "versions": {}}))
    monkeypatch.setattr(gpu, "TARGET_SHAPES", ((3, 5),))
    monkeypatch.setitem(gpu._WHO, "ours", (gpu._ours, by_host, "host"))
    monkeypatch.setattr(gpu, "_TURNS", (2, 0.01))
    monkeypatch.setattr(Case, "load", lambda case: as_dataset(grey_levels(30, 784), scale=1 / 255))
    with fake_cupy.installed(monkeypatch):
        done = CliRunner().invoke(gpu.main, ["estimators", "--json", str(target)])
        assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    assert result["steps"] == [1]
    assert {name: line["draws"] for name, line in result["estimators"].items()} == dict.fromkeys(STEP_ESTIMATORS, 1) | {
        "iwae": 5
    }
    assert all(line["us_per_step"]["p50"] > 0 for line in result["estimators"].values())


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_a_lost_context_leaves_the_rest_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which measures what the file does not have."""

    class Replaced(BaseException):
        """Of `execv`, which does not return."""

    def replace(program: str, command: list[str]) -> None:
        assert command[:5] == [program, "-P", "-m", "fastvae.bench.gpu", "steps"]
        commands.append(command[4:])
        raise Replaced

    def fail(*_: Any, **__: Any) -> None:
        if not commands:
            runtime.is_lost = True
            raise RuntimeError("an illegal memory access")

    commands, target = list[list[str]](), tmp_path / "ours.json"
    monkeypatch.setattr(gpu, "TARGET_SHAPES", ((3, 5), (4, 5)))
    monkeypatch.setattr(gpu, "_PRECISIONS", ("bf16",))
    monkeypatch.setattr(
        gpu, "measured", lambda *_, **__: fail() or {"us_per_step": dict.fromkeys(SPREAD, 1.0), "bound": 0}
    )
    monkeypatch.setattr("os.execv", replace)
    monkeypatch.setattr(Case, "load", lambda case: as_dataset(grey_levels(30, 784), scale=1 / 255))
    with fake_cupy.installed(monkeypatch) as runtime:
        with pytest.raises(Replaced):
            CliRunner().invoke(gpu.main, ["steps", "ours", "--json", str(target)])
        (command,) = commands
        done = CliRunner().invoke(gpu.main, command)
        assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    ways = ("fastvae own overlap", "fastvae own", "fastvae cublas")
    assert [(one["who"], one["M"]) for one in result["failed"]] == [(ways[0], 3)]
    assert [(one["who"], one["M"]) for one in result["steps"]] == [(way, m) for way in ways for m in (3, 4)][1:]


def test_operands_of_the_products_are_rounded() -> None:
    values = np.array([1 + 2**-9, -(1 + 3 * 2**-9), 1 + 2**-13], np.float32)
    assert [hex(v) for v in gpu_constants.as_stored(values, "bf16")] == ["0x3f80", "0xbf81", "0x3f80"]
    np.testing.assert_array_equal(gpu_constants.as_stored(values, "fp32"), values)
    assert gpu_constants.as_stored(values, "tf32")[2] == 1.0


def test_a_constant_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    results = gpu_constants.measure_constants()
    assert all(result["failed"].startswith("ModuleNotFoundError") for result in results.values())


# --- the script ------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("group", "seconds"), [(None, 540), ("check", 300), ("measure", 420)])
def test_the_script_names_its_parts_in_time(group: str | None, seconds: int, tmp_path: Path) -> None:
    """Every part in its place, within the limit; a command that there is not would fail."""
    environment = {**os.environ, "FASTVAE_GPU_DRY_RUN": "1"}
    arguments = [str(tmp_path / "out"), *([group] if group else [])]
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    limits = [int(part.split()[2]) for part in done.stdout.splitlines() if part.startswith("=== ")]
    assert len(limits) > 8
    assert sum(limits) <= seconds
    commands = set(re.findall(r"fastvae\.bench\.gpu ((?:steps )?\w+(?: --sweep)?)", done.stdout))
    of_check = {"constants", "steps ours", "report"}
    of_measure = of_check | {"run", "estimators", "steps torch", "steps jax"}
    of_measure |= {f"steps {who} --sweep" for who in ("ours", "torch", "jax")}
    assert commands == (of_check if group == "check" else of_measure)
    assert done.stdout.count("-m pytest") == {None: 2, "check": 2, "measure": 0}[group]
    # beside the two logs
    written = set(re.findall(rf"{re.escape(str(tmp_path))}/out/(\S+)", done.stdout))
    timings = {f"{name}.json" for name in ("constants", "ours", "torch", "jax", "gpu")}
    assert written == timings | (set() if group == "measure" else {"tests.xml"})
