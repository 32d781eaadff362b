"""What `fastvae reproduce` measures beside the curves: errors, variances, speeds, pictures; and how it takes Ctrl-C."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import COMMAND
from data_files import write_freyface, write_mnist

from fastvae import backends
from fastvae.checkpoint import list_checkpoints, read, save
from fastvae.data import Split, as_dataset
from fastvae.kernels import Array
from fastvae.model import Model
from fastvae.model_file import to_checkpoint
from fastvae.network import Network
from fastvae.report import grid
from fastvae.reproduce import baselines, errors, speed, variance
from fastvae.reproduce import run as run_module
from fastvae.reproduce.paper import SAMPLES_PER_SECOND, Experiment
from fastvae.reproduce.pictures import write_manifolds, write_samples
from fastvae.reproduce.run import Machine, load_split, read_curves, run
from fastvae.training import fitting
from fastvae.training.gradients import GRADIENT_ESTIMATORS, phi_gradient

SMALL = Experiment("mnist", "aevb", "bound", latent_dim=2, hidden=8, n_train=100, n_samples=200_000)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with small files in place of MNIST and Frey Face."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_mnist(folder, draw, n_train=300, n_test=50)
    write_freyface(folder, draw, n_frames=600)
    return Machine(data_dir=str(folder))


# --- errors of reconstruction ---------------------------------------------------------------------------------------


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Correlated rows in several blocks, the last one short, whose mean is far from zero."""
    monkeypatch.setattr(errors, "_BLOCK_ROWS", 7)
    draw = np.random.default_rng(1)
    mixing = draw.normal(size=(9, 9)) * np.linspace(1, 40, 9)
    levels = 130 + draw.normal(size=(60, 9)) @ mixing.T / 3
    rows = np.clip(levels, 0, 255).astype(np.uint8)
    return Split(as_dataset(rows[:40], scale=1 / 255), as_dataset(rows[40:], scale=1 / 255))


def test_errors_of_principal_components_are_those_of_the_svd(split: Split) -> None:
    assert split.test is not None
    train, test = (np.asarray(part.rows) / 255 for part in (split.train, split.test))
    directions = np.linalg.svd(train - train.mean(0))[2]
    ref = []
    for J in (1, 3, 8):
        centred, kept = test - train.mean(0), directions[:J]
        ref.append(np.mean((centred - centred @ kept.T @ kept) ** 2))

    comp = errors.pca_errors(split, (1, 3, 8, 9))

    np.testing.assert_allclose(comp[:3], ref, rtol=1e-5)
    assert comp[3] == 0


def test_the_error_of_a_model_is_that_of_all_its_reconstructions(split: Split) -> None:
    assert split.test is not None
    model = Model(2, hidden_dims=(4,), batch_size=10, n_epochs=1, backend="reference", random_state=0)
    fitting.fit(model, split.train)
    ref = np.mean((np.asarray(split.test.rows) / 255 - model.reconstruct(split.test)) ** 2)
    assert errors.reconstruction_error(model, split.test) == pytest.approx(ref, rel=1e-5)


def test_baselines_stand_beside_principal_components(
    tmp_path: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "load_split", lambda experiment, machine: split)
    chosen = [
        replace(SMALL, algorithm=algorithm, measure="reconstruction error", latent_dim=J)
        for algorithm in ("aevb", "autoencoder")
        for J in (5, 2)
    ]
    for i, e in enumerate(chosen):
        (tmp_path / e.name).mkdir()
        (tmp_path / e.name / "curve.csv").write_text(f"samples_seen,train,test\n100000,9.0,9.0\n200000,8.0,{i}.5\n")
    pca = errors.pca_errors(split, (2, 5))
    assert baselines.baselines(chosen, tmp_path, Machine()) == [
        {"latent_dim": 2, "pca": pca[0], "aevb": 1.5, "autoencoder": 3.5},
        {"latent_dim": 5, "pca": pca[1], "aevb": 0.5, "autoencoder": 2.5},
    ]


# --- variances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", GRADIENT_ESTIMATORS)
def test_moments_are_those_of_the_gradients(estimator: str, draw_params: Callable[..., Array]) -> None:
    network = Network(6, 2, encoder_hidden=(4,), decoder_hidden=(3,))
    plan = backends.load("reference").plan(network, rows=5, draws=1, precision="fp64", n_threads=1)
    params, x = draw_params(network, dtype=np.float64), np.random.default_rng(2).random((5, 6))
    gradients = np.array(
        [phi_gradient(plan, params, x, estimator=estimator, seed=3, step=i) for i in range(variance.N_DRAWS)]
    )
    spread = np.var(gradients, axis=0, ddof=1).sum()

    signal_power, comp = variance._moments(plan, params, x, estimator, 3)

    assert comp == pytest.approx(spread, rel=1e-10)
    # unbiased: the mean's square has a share of the variance in it
    assert signal_power == pytest.approx((gradients.mean(0) ** 2).sum() - spread / variance.N_DRAWS, rel=1e-10)


def test_variances_in_the_course_of_training(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(variance, "N_DRAWS", 4)
    monkeypatch.setattr(run_module, "HOLD_STEPS", 0)
    lines: list[str] = []
    rows = variance.variances(machine, epochs=(0, 1), say=lines.append)
    assert [(row["samples"], row["estimator"]) for row in rows] == [
        (samples, name) for samples in (0, 300) for name in GRADIENT_ESTIMATORS
    ]
    for row in rows:
        assert (row["ratio"] == 1) == (row["estimator"] == "sgvb-b")
        assert (row["ratio"] > 100) == (row["estimator"] == "score-function")
    assert rows[0]["variance"] != rows[3]["variance"]
    assert [line.split(":")[0] for line in lines] == ["after 0 samples", "after 300 samples"]
    variance.plot(rows, tmp_path / "variance")
    assert (tmp_path / "variance.png").read_bytes().startswith(b"\x89PNG")


# --- what a visit of a datapoint counts for --------------------------------------------------------------------------


def test_monte_carlo_em_counts_leapfrog_steps_and_updates(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 5's 10 leapfrog steps and 5 updates: points are as many samples apart, steps a fifteenth."""
    monkeypatch.setattr(run_module, "_trial", lambda *arguments: 0.0)
    monkeypatch.setattr(run_module._Points, "_measure", lambda self, model, rows: float(model.n_steps_))
    expected = {"aevb": (1, [1000, 1778, 2000]), "mcem": (15, [67, 119, 134])}
    for algorithm, (evaluations, steps) in expected.items():
        experiment = replace(SMALL, algorithm=algorithm, measure="marginal likelihood")
        assert experiment.evaluations == evaluations
        seen: list[int] = []
        run(experiment, tmp_path / algorithm, machine, lambda samples, line, seen=seen: seen.append(samples))
        points = [(100 * evaluations * step, step) for step in steps]
        assert list(read_curves(tmp_path / algorithm)["test"]) == points
        assert {samples for samples, _ in points} <= set(seen)
        newest = read(list_checkpoints(tmp_path / algorithm / "checkpoints")[-1])
        assert newest.metadata["state"]["step"] == steps[-1]


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def processes_of(group: int) -> list[int]:
    """Numbers of the living processes of a group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
def test_ctrl_c_ends_all_experiments_with_their_state_saved(tmp_path: Path, machine: Machine) -> None:
    pytest.importorskip("matplotlib")
    assert machine.data_dir is not None
    # wake-sleep on Frey Face, whose step size is fixed, has its first point soonest
    chosen = ("--dataset", "freyface", "--algorithm", "wake-sleep", "--latent-dim", "2", "--latent-dim", "5")
    options = ("--samples", "1e9", "--jobs", "2", "--threads", "1", "--data-dir", machine.data_dir)
    process = subprocess.Popen(
        [*COMMAND, "reproduce", "fig2", *chosen, *options, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job may ignore it
    )
    try:
        folders = [tmp_path / "runs" / f"freyface-wake-sleep-{J}x200" for J in (2, 5)]
        while not all(len(read_curves(folder)["test"]) > 0 for folder in folders):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        assert len(processes_of(process.pid)) >= 3
        os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "fastvae: interrupted; the same command goes on from there"
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while left := processes_of(process.pid):  # multiprocessing's tracker of resources ends after the others
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    for folder in folders:
        newest = read(list_checkpoints(folder / "checkpoints")[-1])
        curve = read_curves(folder)["test"]
        # the table may be cut after the state has a point, not before
        assert [(samples, test) for samples, _, test in newest.metadata["curve"]][: len(curve)] == list(curve)
        assert newest.metadata["state"]["step"] >= curve[-1][0] / 100


# --- pictures -------------------------------------------------------------------------------------------------------


def leave_model(out: Path, experiment: Experiment, machine: Machine) -> Model:
    """Train a little, and leave a checkpoint where `run` does."""
    split = load_split(experiment, machine)
    model = run_module.new_model(experiment, split, machine, step_size=0.02, n_samples=300)
    fitting.fit(model, split.train)
    save(out / "runs" / experiment.name / "checkpoints", to_checkpoint(model), step=model.n_steps_, keep=1)
    return model


def levels_of(path: Path) -> Array:
    """Return the picture in a file of `fastvae.report.write_png`."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    start = content.index(b"IDAT") + 4
    lines = zlib.decompressobj().decompress(content[start:])
    return np.frombuffer(lines, np.uint8).reshape(height, width + 1)[:, 1:]


def test_figure_4_is_a_manifold_of_each_dataset(tmp_path: Path, machine: Machine) -> None:
    chosen = [SMALL, replace(SMALL, dataset="freyface", n_train=0)]
    models = [leave_model(tmp_path, e, machine) for e in chosen]

    paths = write_manifolds(chosen, tmp_path)

    assert paths == [tmp_path / "fig4-mnist.png", tmp_path / "fig4-freyface.png"]
    for path, model, side, shape in zip(paths, models, (20, 10), ((28, 28), (28, 20)), strict=True):
        ref = grid(model.manifold(side), shape, columns=side)
        np.testing.assert_allclose(levels_of(path), 255 * ref, atol=0.51)


def test_figure_5_has_the_models_in_rising_latent_dimensions(tmp_path: Path, machine: Machine) -> None:
    chosen = [replace(SMALL, latent_dim=J) for J in (5, 2, 3)]
    models = {e.latent_dim: leave_model(tmp_path, e, machine) for e in chosen}

    (path,) = write_samples(chosen, tmp_path)

    assert path == tmp_path / "fig5.png"
    levels, start = levels_of(path), 0
    for J in (2, 3, 5):
        ref = grid(models[J].sample(100), (28, 28), columns=10)
        np.testing.assert_allclose(levels[:, start : start + ref.shape[1]], 255 * ref, atol=0.51)
        start += ref.shape[1]
        assert (levels[:, start : start + 24] == 255).all()
        start += 24
    assert levels.shape[1] == start - 24


# --- speed ----------------------------------------------------------------------------------------------------------


def test_speeds_are_those_of_a_training_of_some_seconds(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_WARM_SAMPLES", 200)
    monkeypatch.setattr(speed, "_SECONDS", 0.05)
    trained: list[tuple[int, float]] = []
    fit = fitting.fit

    def timed(model: Model, X: Any) -> None:
        fit(model, X)
        trained.append((model.state_.samples, model.state_.seconds))

    monkeypatch.setattr(speed.fitting, "fit", timed)
    rows = speed.speeds(machine)

    assert [(row["dataset"], row["latent_dim"]) for row in rows] == [("mnist", 20), ("freyface", 10)]
    for row, (warm, measured) in zip(rows, (trained[:2], trained[2:]), strict=True):
        rate = row["samples_per_second"]
        assert rate == measured[0] / measured[1]
        assert row["minutes_per_million"] == pytest.approx(1e6 / 60 / rate)
        assert row["times_the_paper"] == pytest.approx(rate / max(SAMPLES_PER_SECOND))
        goal = max(0.05 * warm[0] / warm[1], 200)  # samples, reached in whole epochs of at most 300
        assert int(goal) <= measured[0] < goal + 300
