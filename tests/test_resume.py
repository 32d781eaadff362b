"""Interruption and resume: the same bits as a run that was never cut."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interruption import StopAt

from fastvae import VAE, backends
from fastvae.callbacks import Checkpoint
from fastvae.checkpoint import list_checkpoints, load_latest, read
from fastvae.kernels import Array, Engine
from fastvae.model_file import from_checkpoint

COMMAND = [sys.executable, "-P", "-c", "from fastvae.cli import main; main()"]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adagrad-map": {"optimizer": "adagrad", "prior": True, "n_draws": 2},
    "sgd-dynamic": {"optimizer": "sgd", "binarize": "dynamic"},
    "gaussian-warmup": {"likelihood": "gaussian", "kl_warmup": 9},
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "sgvb-a": {"estimator": "sgvb-a"},
    "iwae": {"estimator": "iwae", "n_draws": 3, "prior": True},
    "wake-sleep": {"algorithm": "wake-sleep", "binarize": "dynamic", "optimizer": "adagrad", "prior": True},
    "mcem": {"algorithm": "mcem", "optimizer": "adagrad", "prior": True},
    "full-vb": {"algorithm": "full-vb", "kl_warmup": 9},
    "autoencoder": {"algorithm": "autoencoder", "likelihood": "gaussian", "optimizer": "sgd"},
}
INTERRUPTIONS = [
    *((name, step) for name in CONFIGURATIONS for step in (1, 4, 5, 7, 14)),
    *((name, step) for name in ALGORITHMS for step in (1, 7)),
]


def make_rows() -> Array:
    return np.random.default_rng(4).integers(0, 256, (53, 11), dtype=np.uint8)


def make_vae(engine: Engine, **changes: Any) -> VAE:
    settings: dict[str, Any] = {
        "latent_dim": 2,
        "hidden_dims": (8,),
        "batch_size": 10,
        "n_epochs": 3,
        "random_state": 9,
        "backend": engine.NAME,
    }
    return VAE(**settings | changes)


def held_out(model: VAE) -> Array | None:
    return None if model.algorithm in ("mcem", "autoencoder") else make_rows()[:9]


def fit_until(model: VAE, step: int, folder: Path) -> None:
    model.set_params(callbacks=[Checkpoint(folder, every=4, keep=99), StopAt(step)])
    with pytest.warns(UserWarning, match=f"training was interrupted after step {step}: the model is that of this step"):
        model.fit(make_rows(), eval_set=held_out(model))


def go_on(folder: Path, **changes: Any) -> VAE:
    _, checkpoint = load_latest(folder, on_damaged=lambda *_: None)
    model = from_checkpoint(checkpoint, VAE).set_params(**changes)
    return model.resume(make_rows(), eval_set=held_out(model))


def assert_same_run(comp: VAE, ref: VAE) -> None:
    np.testing.assert_array_equal(comp.params_, ref.params_)
    np.testing.assert_array_equal(comp.state_.slots, ref.state_.slots)
    assert comp.state_.extra.keys() == ref.state_.extra.keys()
    for name, part in ref.state_.extra.items():
        np.testing.assert_array_equal(comp.state_.extra[name], part, err_msg=name)
    times = ("seconds", "samples_per_second")
    assert {name: column for name, column in comp.history_.items() if name not in times} == {
        name: column for name, column in ref.history_.items() if name not in times
    }


@pytest.mark.parametrize(("name", "step"), INTERRUPTIONS)
def test_interrupted_anywhere_ends_in_the_same_weights(engine: Engine, tmp_path: Path, name: str, step: int) -> None:
    settings = (CONFIGURATIONS | ALGORITHMS)[name]
    ref = make_vae(engine, **settings)
    ref.fit(make_rows(), eval_set=held_out(ref))
    fit_until(make_vae(engine, **settings), step, tmp_path)
    assert list_checkpoints(tmp_path)[-1].stem.endswith(f"{step:012d}")

    comp = go_on(tmp_path)

    assert_same_run(comp, ref)


def test_resumes_from_every_checkpoint_of_a_run(engine: Engine, tmp_path: Path) -> None:
    model = make_vae(engine, callbacks=[Checkpoint(tmp_path, every=1, keep=99)]).fit(make_rows())
    paths = list_checkpoints(tmp_path)
    assert len(paths) == 16

    for path in paths:
        comp = from_checkpoint(read(path), VAE).resume(make_rows())
        np.testing.assert_array_equal(comp.params_, model.params_)
        assert comp.history_["elbo"] == model.history_["elbo"]


def test_sessions_on_other_numbers_of_threads_end_in_the_same_weights(engine: Engine, tmp_path: Path) -> None:
    if engine.NAME == "reference":
        pytest.skip("the reference leaves threads to NumPy's BLAS")
    ref = make_vae(engine, hidden_dims=(65, 33), n_threads=1).fit(make_rows(), eval_set=make_rows()[:9])
    fit_until(make_vae(engine, hidden_dims=(65, 33), n_threads=2), 7, tmp_path)

    comp = go_on(tmp_path, n_threads=3)

    assert_same_run(comp, ref)


def test_a_damaged_newest_checkpoint_costs_only_its_steps(engine: Engine, tmp_path: Path) -> None:
    ref = make_vae(engine).fit(make_rows(), eval_set=make_rows()[:9])
    fit_until(make_vae(engine), 9, tmp_path)
    newest = list_checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    damaged = []

    path, checkpoint = load_latest(tmp_path, on_damaged=lambda path, error: damaged.append(path))
    comp = from_checkpoint(checkpoint, VAE).resume(make_rows(), eval_set=make_rows()[:9])

    assert damaged == [newest]
    assert path.stem.endswith("8")
    assert_same_run(comp, ref)
    with pytest.warns(UserWarning, match="do not match their SHA-256"):
        VAE.load(tmp_path)


def test_another_backend_takes_a_run_over(tmp_path: Path) -> None:
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    ref = make_vae(backends.load("cpp")).fit(make_rows(), eval_set=make_rows()[:9])
    fit_until(make_vae(backends.load("cpp")), 7, tmp_path)

    comp = go_on(tmp_path, backend="reference")

    np.testing.assert_allclose(comp.params_, ref.params_, atol=1e-4)
    np.testing.assert_allclose(comp.history_["elbo"], ref.history_["elbo"], rtol=1e-4)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    data = folder.parent / "rows.npy"
    if not data.exists():
        np.save(data, np.random.default_rng(0).integers(0, 256, (600, 40), dtype=np.uint8))
    arguments = ["--data", str(data), "--out", str(folder), "--hidden", "32", "--latent-dim", "3", "--batch-size", "20"]
    return subprocess.Popen(
        [*COMMAND, "train", *arguments, "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FASTVAE_DEBUG": ""},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    return out, err


def final_state(folder: Path) -> tuple[Array, Array, Any]:
    checkpoint = read(list_checkpoints(folder / "checkpoints")[-1])
    return checkpoint.tensors["params"], checkpoint.tensors["optimizer"], checkpoint.metadata["state"]["step"]


def newest_step(folder: Path) -> int:
    return max((int(path.stem[-12:]) for path in list_checkpoints(folder / "checkpoints")), default=-1)


@pytest.mark.slow
def test_killed_at_fifty_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    options = ("--epochs", "8000", "--checkpoint-every", "500", "--seed", "3")
    out, err = finish(start(tmp_path / "ref", *options))
    n_steps = json.loads(out)["steps"]

    moments, folder = random.Random(0), tmp_path / "run"
    for _ in range(50):
        before = newest_step(folder)
        process = start(folder, *options, "--resume")
        while newest_step(folder) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        finish(process)
    kills_ended_at = newest_step(folder)
    out, err = finish(start(folder, *options, "--resume"))

    assert kills_ended_at < n_steps, "every session ran to its end: nothing was killed"
    assert json.loads(out)["steps"] == n_steps, err
    for comp, ref in zip(final_state(folder), final_state(tmp_path / "ref"), strict=True):
        np.testing.assert_array_equal(comp, ref)
    assert [path.name for path in folder.rglob(".*")] == []


def test_a_run_of_another_algorithm_that_is_killed_ends_in_the_same_state(tmp_path: Path) -> None:
    """Killed within an epoch; a chain per datapoint and a step size go on too."""
    options = ("--algorithm", "mcem", "--epochs", "8", "--checkpoint-every", "37", "--seed", "3")
    finish(start(tmp_path / "ref", *options))
    folder = tmp_path / "run"
    process = start(folder, *options)
    while newest_step(folder) < 2 * 37:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    finish(process)
    killed_at = newest_step(folder)

    out, err = finish(start(folder, *options, "--resume"))

    values = json.loads(out)
    assert killed_at < values["steps"], "it ran to its end: nothing was killed"
    assert (values["algorithm"], "elbo_train" in values) == ("mcem", False), err
    ref, comp = (read(list_checkpoints(tmp_path / run / "checkpoints")[-1]) for run in ("ref", "run"))
    assert comp.tensors.keys() == ref.tensors.keys() >= {"extra.z", "extra.step_size"}
    for name, tensor in ref.tensors.items():
        np.testing.assert_array_equal(comp.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_says_how_to_go_on_and_is_answered_at_once(tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "a run"
    process = start(folder, "--epochs", "1000000")
    while not list_checkpoints(folder / "checkpoints"):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)

    begin = time.monotonic()
    process.send_signal(number)
    out, err = finish(process)
    seconds = time.monotonic() - begin

    assert process.returncode == code
    assert seconds < 2  # 0.2 s on a quiet machine
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("fastvae: interrupted at step ")
    assert last.endswith(f"go on with: fastvae train --out '{folder}' --resume")
    assert "Traceback" not in err
    step = final_state(folder)[2]
    assert f"interrupted at step {step}, saved in " in last
    assert step > 0
