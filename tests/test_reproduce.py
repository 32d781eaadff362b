"""The paper's curves, and experiments that go on after they were killed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_mnist

from fastvae import VAE
from fastvae.errors import CheckpointError, FastvaeError
from fastvae.reproduce import run as run_module
from fastvae.reproduce.paper import Experiment, experiments, interpolate, paper_curve
from fastvae.reproduce.results import scores, write
from fastvae.reproduce.run import STEP_SIZES, Machine, choices, read_curves, run
from fastvae.reproduce.together import run_all

SMALL = Experiment("mnist", "aevb", "bound", latent_dim=2, hidden=8, n_train=1000, n_samples=200_000)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine whose MNIST is small: images of two kinds, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder, np.random.default_rng(0), n_train=1200, n_test=100)
    return Machine(data_dir=str(folder))


def ignore(samples: int, line: str) -> None:
    pass


# DESIGN section 8 and the published figure.
@pytest.mark.parametrize(
    ("dataset", "algorithm", "latent_dim", "samples", "value"),
    [
        ("mnist", "aevb", 20, 1e6, -124.2),
        ("mnist", "aevb", 20, 1e7, -104.8),
        ("mnist", "aevb", 3, 1e8, -133.4),
        ("freyface", "aevb", 10, 1e7, 1171),
        ("freyface", "wake-sleep", 5, 1e7, 569),
    ],
)
def test_paper_curve_has_the_published_values(
    dataset: str, algorithm: str, latent_dim: int, samples: float, value: float
) -> None:
    (experiment,) = experiments("fig2", datasets=[dataset], algorithms=[algorithm], latent_dims=[latent_dim])
    found = interpolate(paper_curve("fig2", experiment, "test"), samples)
    assert found == pytest.approx(value, abs=0.6)


def test_every_experiment_of_figures_2_and_3_has_a_curve_of_the_paper() -> None:
    for figure in ("fig2", "fig3"):
        for experiment in experiments(figure):
            for split in ("train", "test"):
                assert len(paper_curve(figure, experiment, split)) == 40, (experiment, split)
    assert len(experiments("fig2")) == 18
    assert len(experiments("fig3")) == 6


def test_interpolation_is_linear_in_the_logarithm_and_ends_with_the_curve() -> None:
    curve = ((10.0, 0.0), (1000.0, 2.0), (1e5, 3.0))
    assert interpolate(curve, 100) == pytest.approx(1)
    assert interpolate(curve, 1e4) == pytest.approx(2.5)
    assert interpolate(curve, 9) is None
    assert interpolate(curve, 2e5) is None
    assert interpolate((), 10) is None


def test_experiments_are_chosen_and_unknown_ones_refused() -> None:
    chosen = experiments("fig2", datasets=["mnist"], latent_dims=[3, 20], algorithms=["wake-sleep"], n_samples=123)
    assert [(e.latent_dim, e.algorithm, e.n_samples, e.hidden) for e in chosen] == [
        (20, "wake-sleep", 123, 500),
        (3, "wake-sleep", 123, 500),
    ]
    with pytest.raises(ValueError, match="fig2 has no latent_dim 4; it has 2, 3, 5, 10, 20, 200"):
        experiments("fig2", latent_dims=[4])
    with pytest.raises(ValueError, match="fig3 has no dataset freyface; it has mnist"):
        experiments("fig3", datasets=["freyface"])


def cut_at(call: int) -> Any:
    """Return a measurement that is interrupted at its n-th call."""
    calls, measure = itertools.count(1), run_module._Points._measure

    def measure_or_cut(self: Any, model: Any, rows: Any) -> float:
        if next(calls) == call:
            raise KeyboardInterrupt
        return measure(self, model, rows)

    return measure_or_cut


def test_an_experiment_that_was_killed_goes_on_to_the_same_curve(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SMALL, tmp_path / "whole", machine, ignore)
    whole = read_curves(tmp_path / "whole")
    assert [samples for samples, _ in whole["test"]] == [100_000, 121_200, 146_800, 177_800, 200_000]
    assert all(later > earlier for (_, earlier), (_, later) in zip(whole["train"], whole["train"][1:], strict=False))

    def kill(samples: int, line: str) -> None:
        if samples > 130_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "cut", machine, kill)
    assert 1 <= len(read_curves(tmp_path / "cut")["test"]) < 5
    run(SMALL, tmp_path / "cut", machine, ignore)
    assert read_curves(tmp_path / "cut") == whole
    # cut while a point in the middle was measured, and the last one
    for cut in (2, 5):
        monkeypatch.setattr(run_module._Points, "_measure", cut_at(2 * cut - 1))
        with pytest.raises(KeyboardInterrupt):
            run(SMALL, tmp_path / f"cut {cut}", machine, ignore)
        monkeypatch.undo()
        assert len(read_curves(tmp_path / f"cut {cut}")["test"]) == cut - 1
        run(SMALL, tmp_path / f"cut {cut}", machine, ignore)
        assert read_curves(tmp_path / f"cut {cut}") == whole
    # further, from where it stands
    run(replace(SMALL, n_samples=220_000), tmp_path / "cut", machine, ignore)
    assert read_curves(tmp_path / "cut")["test"][:5] == whole["test"]
    assert read_curves(tmp_path / "cut")["test"][-1][0] == 220_000


def test_the_step_size_is_the_best_of_the_paper_s_three(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives: dict[float, float | None] = {0.01: -3.0, 0.02: -2.0, 0.1: None}
    monkeypatch.setattr(run_module, "_trial", lambda *arguments: objectives[arguments[-1]])
    seen: list[float] = []

    def look(model: Any, X: Any) -> None:
        seen.append(model.optimizer.learning_rate)

    monkeypatch.setattr(run_module.fitting, "fit", look)
    run(SMALL, tmp_path, machine, ignore)
    assert tuple(objectives) == STEP_SIZES
    assert seen == [0.02]


def test_another_experiment_or_seed_in_the_same_folder_is_refused(tmp_path: Path, machine: Machine) -> None:
    short = replace(SMALL, n_samples=100_000)
    run(short, tmp_path, machine, ignore)
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        run(replace(short, hidden=9), tmp_path, machine, ignore)
    with pytest.raises(CheckpointError, match="has --seed 0"):
        run(short, tmp_path, replace(machine, seed=1), ignore)


def test_a_step_size_and_initial_weights_of_one_s_own_replace_the_rule_s(tmp_path: Path, machine: Machine) -> None:
    own = replace(SMALL, n_samples=100_000, step_size=0.05, init="fan_in")
    run(own, tmp_path / own.name, machine, ignore)
    assert own.name == f"{SMALL.name}-step-0.05-init-fan_in"
    assert choices(own, tmp_path / own.name) == {"initial_weights": "fan_in", "step_size": 0.05, "tried": None}
    model = VAE.load(tmp_path / own.name)
    assert (model.optimizer_.learning_rate, model.init) == (0.05, "fan_in")
    with pytest.raises(CheckpointError, match="another experiment"):
        run(replace(own, step_size=0.06), tmp_path / own.name, machine, ignore)


def test_experiments_side_by_side_and_one_that_fails(tmp_path: Path, machine: Machine) -> None:
    good = replace(SMALL, n_samples=100_000)
    lines: list[str] = []
    with pytest.raises(FastvaeError, match=r"freyface-aevb-2x8 failed: freyface is not in"):
        run_all([replace(good, dataset="freyface", n_train=0), good], tmp_path, machine, jobs=2, say=lines.append)
    assert len(read_curves(tmp_path / good.name)["train"]) == 1
    assert any("100,000 of 100,000 samples" in line for line in lines)


def test_scores_and_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (experiment,) = experiments("fig2", datasets=["mnist"], algorithms=["aevb"], latent_dims=[20], n_samples=10**7)
    folder = tmp_path / "runs" / experiment.name
    folder.mkdir(parents=True)
    tried = {"0.01": None, "0.02": -1.0, "0.1": -2.0}
    (folder / "step_size.json").write_text(json.dumps({"tried": tried, "seed": 0, "precision": "fp32"}))
    (folder / "curve.csv").write_text("samples_seen,train,test\n100000,-150.0,-151.0\n1000000,-120.0,-121.0\n")
    found = scores("fig2", [experiment], tmp_path / "runs")
    assert [(row["split"], row["samples"], row["ours"]) for row in found] == [
        ("train", 10**6, -120.0),
        ("test", 10**6, -121.0),
    ]
    paper = interpolate(paper_curve("fig2", experiment, "test"), 1e6)
    assert paper is not None
    assert found[1]["paper"] == paper
    assert found[1]["difference"] == -121.0 - paper
    values = write("fig2", [experiment], tmp_path)
    assert json.loads((tmp_path / "fig2.json").read_text()) == values
    assert values["choices"] == {experiment.name: {"initial_weights": 0.1, "step_size": 0.02, "tried": tried}}
    assert (tmp_path / "fig2.csv").read_text().splitlines()[1] == "mnist,20,50000,aevb,train,100000,-150.000"
    assert (tmp_path / "fig2.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "fig2.svg").read_bytes()


def test_command_refuses_what_the_paper_has_not() -> None:
    pytest.importorskip("matplotlib")
    command = [
        sys.executable,
        "-P",
        "-c",
        "from fastvae.cli import main; main()",
        "reproduce",
        "fig3",
        "--latent-dim",
        "7",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 2
    assert "fig3 has no --latent-dim 7; it has 3" in ended.stderr


def test_draw_only_draws_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (experiment,) = experiments("fig2", datasets=["mnist"], algorithms=["wake-sleep"], latent_dims=[5])
    folder = tmp_path / "runs" / experiment.name
    folder.mkdir(parents=True)
    (folder / "curve.csv").write_text("samples_seen,train,test\n1000000,-140.0,-141.0\n")
    tried = {"0.01": -2.0, "0.02": -1.0, "0.1": None}
    (folder / "step_size.json").write_text(json.dumps({"tried": tried, "seed": 0, "precision": "fp32"}))
    program = "from fastvae.cli import main; main()"
    command = [
        sys.executable,
        "-P",
        "-c",
        program,
        "reproduce",
        "fig2",
        "--draw-only",
        "--json",
        "--out",
        str(tmp_path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert [(row["latent_dim"], row["ours"]) for row in json.loads(ended.stdout)["scores"]] == [
        (5, -140.0),
        (5, -141.0),
    ]
    assert (tmp_path / "fig2.png").is_file()
    ended = subprocess.run([*command, "--dataset", "freyface"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "has no point of fig2 yet" in ended.stderr
