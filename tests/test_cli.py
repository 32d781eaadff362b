"""The command line: what goes to stdout and stderr, exit codes, and errors of one line."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import COMMAND, QUICK, Result, assert_error

from fastvae import VAE, backends
from fastvae.callbacks import Checkpoint
from fastvae.checkpoint import list_checkpoints, read
from fastvae.cli import main
from fastvae.data import load
from fastvae.files import lock_folder, replace_file
from fastvae.kernels import Engine
from fastvae.model import Model
from fastvae.report import write_png


def test_train_prints_one_object_with_every_figure(
    fastvae: Callable[..., Result], engine: Engine, tmp_path: Path
) -> None:
    result = fastvae("train", *QUICK, "--backend", engine.NAME, "--seed", 7, "--out", tmp_path / "run", "--json")

    values = result.json()
    assert result.code == 0
    assert values["elbo_test"] == pytest.approx(values["log_px_z"] - values["kl"])
    assert -50 < values["elbo_train"] < -30
    assert values["samples_per_second"] > 0
    expected = {"steps": 30, "epochs": 2, "backend": engine.NAME, "precision": "fp32", "seed": 7, "data": "digits"}
    assert values.items() >= expected.items()
    assert values["threads"] == backends.default_threads()
    assert Path(values["checkpoint"]).is_file()
    assert [line.split("  ")[0] for line in result.err.splitlines()] == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize(
    ("options", "column"),
    [
        (("--algorithm", "wake-sleep"), "elbo_test"),
        (("--algorithm", "mcem"), "log_pxz_train"),
        (("--algorithm", "autoencoder"), "log_px_train"),
        (("--estimator", "iwae", "--n-draws", "3"), "elbo_test"),
    ],
)
def test_another_algorithm_trains_goes_on_and_stays(
    fastvae: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], column: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = fastvae("train", *QUICK, *options, "--out", whole, "--epochs", 3, "--json").json()
    fastvae("train", *QUICK, *options, "--out", parts)

    refused = fastvae("train", "--out", parts, "--resume", options[0], "full-vb" if "algo" in options[0] else "sgvb-a")
    values = fastvae("train", "--out", parts, "--resume", "--epochs", 3, "--json").json()

    trained = values["algorithm"], values["training_estimator"], values["training_draws"]
    assert trained == (("aevb", "iwae", 3) if "iwae" in options else (options[1], None, 1))
    assert refused.code == 1
    assert f"has {options[0]} {options[1]}, not " in refused.err
    assert values[column] == expected[column]
    assert values["algorithm"] == (options[1] if "algo" in options[0] else "aevb")
    assert (parts / "samples.png").is_file()
    assert (parts / "reconstructions.png").is_file() == ("mcem" not in options)


def test_evaluating_a_model_of_mcem_names_what_to_use(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    fastvae("train", *QUICK, "--algorithm", "mcem", "--out", tmp_path / "run")
    result = fastvae("evaluate", tmp_path / "run")
    assert (result.code, result.out) == (1, "")
    assert "no recognition model" in result.err
    assert "--estimator 'marginal-likelihood' or 'ais'" in result.err
    shown = fastvae("evaluate", tmp_path / "run", "--estimator", "marginal-likelihood", "--json")
    assert -100 < shown.json()["log_likelihood"] < 0
    assert shown.json()["start"] == "prior"
    assert "begin: encoder, for mcem prior" in " ".join(fastvae("evaluate", "--help").out.split())


def test_train_ends_in_a_table(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    result = fastvae("train", *QUICK, "--out", tmp_path / "run")

    names = [line.split()[0] for line in result.out.splitlines()]
    assert {"elbo_train", "elbo_test", "kl", "samples_per_second", "checkpoint"} <= set(names)


def test_a_run_leaves_checkpoint_configuration_history_and_pictures(run_folder: Path) -> None:
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "checkpoints",
        "config.toml",
        "history.csv",
        "reconstructions.png",
        "report.html",
        "result.json",
        "samples.png",
    }
    lines = (run_folder / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,elbo,log_px,kl,kl_weight,learning_rate,seconds,samples_per_second,elbo_test")
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "15"], ["2", "30"]]
    metadata = read(list_checkpoints(run_folder / "checkpoints")[-1]).metadata
    assert metadata["run"] == {
        "data": "digits",
        "test_fraction": None,
        "data_dir": None,
        "checkpoint_every": None,
        "keep": 3,
        "early_stopping": None,
        "tensorboard": False,
    }
    assert metadata["data"]["fingerprint"]["n_rows"] == 1500
    assert {"backend", "isa", "precision", "n_threads"} <= metadata["engine"].keys()
    for picture in ("samples.png", "reconstructions.png"):
        assert (run_folder / picture).read_bytes().startswith(b"\x89PNG")


def test_evaluate_repeats_the_bound_of_train_bit_for_bit(fastvae: Callable[..., Result], run_folder: Path) -> None:
    trained = json.loads((run_folder / "result.json").read_text())

    test = fastvae("evaluate", run_folder, "--json").json()
    train = fastvae("evaluate", trained["checkpoint"], "--split", "train", "--json").json()
    more = fastvae("evaluate", run_folder, "--n-draws", 50, "--seed", 1, "--json").json()

    assert (test["elbo"], test["log_px_z"], test["kl"]) == (trained["elbo_test"], trained["log_px_z"], trained["kl"])
    assert train["elbo"] == trained["elbo_train"]
    assert (test["n_draws"], train["n_draws"]) == (4, 1)
    assert (trained["evaluation_draws"], trained["evaluation_draws_train"]) == (4, 1)
    assert more["elbo"] == pytest.approx(test["elbo"], abs=0.5)
    assert more["elbo"] != test["elbo"]
    assert (more["n_draws"], more["evaluation_seed"]) == (50, 1)


def test_evaluate_estimates_the_log_likelihood(fastvae: Callable[..., Result], run_folder: Path) -> None:
    quick = {
        "importance": ("--k", 50),
        "marginal-likelihood": ("--n-draws", 8, "--n-burn-in", 5, "--density", "diagonal", "--start", "prior"),
        "ais": ("--n-draws", 2, "--n-temperatures", 5, "--n-leapfrog", 2),
    }
    options = ("--threads", 1, "--seed", 3)
    bound = fastvae("evaluate", run_folder, *options, "--json").json()
    for estimator, arguments in quick.items():
        values = fastvae("evaluate", run_folder, "--estimator", estimator, *arguments, *options, "--json").json()
        assert (values["estimator"], values["n_draws"], values["split"]) == (estimator, arguments[1], "test")
        assert values["log_likelihood"] == pytest.approx(bound["elbo"], abs=5)
    table = fastvae("evaluate", run_folder, "--estimator", "importance", *options).out
    assert re.search(r"^log_likelihood +-\d+\.\d{3} nats$", table, re.MULTILINE)
    assert re.search(r"^effective_sample_size +\d+\.\d$", table, re.MULTILINE)
    assert re.search(r"^kl_per_dimension +(\d+\.\d{3} )+nats$", fastvae("evaluate", run_folder).out, re.MULTILINE)
    wrong = fastvae("evaluate", run_folder, "--estimator", "ais", "--density", "kde")
    assert_error(wrong, 2, "--density belongs to --estimator marginal-likelihood, not ais")


def test_a_file_is_split_and_found_as_in_training_from_any_folder(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((300, 4)))
    out, rows = ("--out", tmp_path / "run"), ("--data", tmp_path / "rows.npy")
    monkeypatch.chdir(tmp_path)
    trained = fastvae("train", "--data", "rows.npy", "--test-fraction", 0.5, *out, *QUICK, "--json").json()
    monkeypatch.chdir(tmp_path / "elsewhere")

    for source in ((), rows, ("--data", "../rows.npy")):
        assert fastvae("evaluate", tmp_path / "run", *source, "--json").json()["elbo"] == trained["elbo_test"]
    assert fastvae("evaluate", tmp_path / "run", "--test-fraction", 0.2, "--json").json()["n_rows"] == 60
    again = fastvae("train", "--resume", *out, "--data", "../rows.npy", "--epochs", 3, "--json").json()
    assert again["epochs"] == 3


def test_evaluate_takes_other_data_of_the_same_width(
    fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((20, 64)))

    values = fastvae(
        "evaluate", run_folder, "--data", tmp_path / "rows.npy", "--test-fraction", 0, "--split", "train", "--json"
    ).json()

    assert values["n_rows"] == 20


def test_the_python_api_opens_a_run(run_folder: Path) -> None:
    model = VAE.load(run_folder)

    assert model.n_steps_ == 30
    trained = json.loads((run_folder / "result.json").read_text())
    assert model.score(load("digits").test) == trained["elbo_test"]


def test_sample_reconstruct_and_encode_write_files(
    fastvae: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    model, test = VAE.load(run_folder), load("digits").test
    assert test is not None

    for command, out, options in (
        ("sample", "samples.npy", ("-n", 3)),
        ("sample", "samples.png", ("-n", 7, "--seed", 1)),
        ("reconstruct", "means.npy", ()),
        ("reconstruct", "means.png", ("-n", 13)),
        ("encode", "codes.npy", ("--split", "train")),
        ("encode", "codes.csv", ()),
    ):
        result = fastvae(command, run_folder, "--out", tmp_path / out, *options)
        assert (result.code, result.out, result.err) == (0, f"{tmp_path / out}\n", "")

    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), model.sample(3))
    np.testing.assert_array_equal(np.load(tmp_path / "means.npy"), model.reconstruct(test))
    assert np.load(tmp_path / "codes.npy").shape == (1500, 2)
    codes = np.loadtxt(tmp_path / "codes.csv", delimiter=",", skiprows=1, dtype=np.float32)
    np.testing.assert_array_equal(codes, model.transform(test))
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert fastvae("encode", run_folder, "--out", tmp_path / "codes.npy", "--json").json() == {
        "out": str(tmp_path / "codes.npy"),
        "n_rows": 297,
    }


def test_info_names_version_backends_and_folders(fastvae: Callable[..., Result]) -> None:
    values = fastvae("info", "--json").json()

    assert values["backends"].keys() == set(backends.NAMES)
    assert values["backends"]["reference"]["available"] is True
    assert {"version", "isa", "threads", "data_folder", "cache_folder", "default_backend"} <= values.keys()
    text = fastvae("info").out
    assert "backend reference" in text
    assert values["version"] in text


def second_backend() -> str:
    """What "auto" takes where there is no cpp."""
    return next(name for name in backends.NAMES if name != "cpp" and backends.unavailable(name) is None)


@pytest.mark.filterwarnings("default")
def test_info_says_why_a_backend_is_missing(fastvae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    keep = backends.unavailable
    monkeypatch.setattr(backends, "unavailable", lambda name: "no compiler, no cpp" if name == "cpp" else keep(name))

    result = fastvae("info")
    assert "no compiler, no cpp" in result.out
    assert result.err.startswith(f"fastvae: warning: no compiler, no cpp; taking the backend {second_backend()!r}")
    assert result.err.count("\n") == 1
    assert fastvae("info", "--json").json()["backends"]["cpp"]["available"] is False


def test_info_says_why_an_instruction_set_is_missing() -> None:
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    environment = {**os.environ, "FASTVAE_SIMD_LEVEL": "sse9"}

    result = subprocess.run([*COMMAND, "info", "--json"], capture_output=True, text=True, timeout=60, env=environment)

    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert "FASTVAE_SIMD_LEVEL=sse9" in values["backends"]["cpp"]["reason"]
    assert values["default_backend"] == second_backend()
    assert result.stderr.count("fastvae: warning: ") == result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2", "cpu.max": "250000 100000\n"}, 2),
        ({"OMP_NUM_THREADS": "64"}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_threads_keep_to_the_control_groups_quota_and_to_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(backends, "_CGROUP", tmp_path)
    files = files.copy()
    monkeypatch.setenv("OMP_NUM_THREADS", files.pop("OMP_NUM_THREADS", ""))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert backends.default_threads() == threads


def test_data_lists_the_named_datasets(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    assert fastvae("data").out.splitlines()[0].split() == ["digits", "1797", "x", "64", "embedded"]
    values = fastvae("data", "list", "--data-dir", tmp_path, "--json").json()
    assert values["mnist"]["state"] == "missing"
    for args in (("data", "--json"), ("data", "--json", "list")):
        assert fastvae(*args, "--data-dir", tmp_path).json() == values
    assert str(tmp_path) in fastvae("data", "list", "--data-dir", tmp_path).out


def test_data_fetch_without_a_server_is_one_line(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVAE_DATA_URL", "http://127.0.0.1:9/")

    result = fastvae("data", "fetch", "mnist", "--data-dir", tmp_path)

    assert_error(result, 1, str(tmp_path))


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("paint",), 2, "No such command 'paint'"),
        (("train", "--wings"), 2, "No such option"),
        (("train", "--latent-dim", "0"), 2, "--latent-dim"),
        (("train", "--latent-dim", "two"), 2, "--latent-dim"),
        (("train", "--hidden", "5,x"), 2, "not a list of widths"),
        (("train", "--hidden", "0"), 2, "not a list of widths"),
        (("train", "--hidden", "1000000000"), 2, "each from 1 to 16777216"),
        (("train", "--mean", "identity"), 2, "--mean identity needs --likelihood gaussian"),
        (("train", "--data", ""), 1, "name of the data is empty"),
        (("train", "--data", "/dev/null"), 1, "/dev/null is not a regular file"),
        (("train", "--out", ""), 2, "the path is empty"),
        (("train", "--init", "1e30"), 1, "is not finite; the initial weights or the data are too large: set --init"),
        (("evaluate", ""), 2, "the path is empty"),
        (("train", "--hidden", "8", "--hidden", "none"), 2, "nor none by itself"),
        (("train", "--threads", "1025"), 2, "--threads"),
        (("train", "--activation", "gelu"), 2, "'gelu' is not one of"),
        (("train", "--backend", "abacus"), 2, "'abacus' is not one of"),
        (("train", "--learning-rate", "-1"), 2, "--learning-rate must lie in"),
        (("train", "--learning-rate", "nan"), 2, "--learning-rate must lie in"),
        (("train", "--kl-weight", "inf"), 2, "--kl-weight must be"),
        (("train", "--init", "big"), 2, "neither fan_in nor"),
        (
            ("train", "--binarize", "fixed", "--likelihood", "gaussian"),
            2,
            "--binarize fixed makes pixels 0 or 1; it needs --likelihood",
        ),
        (("train", "--test-fraction", "1"), 2, "--test-fraction"),
        (("train", "--epochs", "0"), 2, "--epochs"),
        (("train", "--seed", "-1"), 2, "--seed"),
        (("train", "--resume"), 2, "--resume needs --out"),
        (("train", "--data", "no-such-file.npy"), 1, "no-such-file.npy"),
        (("train", "--data", "mnist", "--data-dir", "/nonexistent"), 1, "fastvae data fetch mnist"),
        (("train", "--test-fraction", "0.5"), 1, "digits has its own test set"),
        (("train", "--precision", "fp12"), 1, "no precision 'fp12'"),
        (("train", "--hidden", "16777216,16777216"), 1, "out of memory"),
        (("train", "--optimizer", "sgd", "--learning-rate", "1000"), 1, "training diverged at step"),
        (("evaluate",), 2, "Missing argument 'CHECKPOINT'"),
        (("evaluate", "nowhere"), 1, "nowhere"),
        (("evaluate", "."), 1, "holds no checkpoint"),
        (("sample", "nowhere", "--out", "picture.jpg"), 2, "must end in .png or .npy"),
        (("sample", "nowhere", "--out", "no/such/folder/x.npy"), 2, "does not exist"),
        (("data", "fetch", "atlantis"), 1, "atlantis"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_errors_are_one_line(
    fastvae: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    text: str,
    as_json: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fastvae(*args, *(["--json"] if as_json and args[0] != "paint" else []))
    assert_error(result, code, text)


def test_data_outside_the_likelihood_name_row_and_column(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((300, 4))
    for value, text in ((np.nan, "row 7, column 2"), (1.5, "is outside [0, 1]")):
        rows[7, 2] = value
        np.save(tmp_path / "rows.npy", rows)
        result = fastvae("train", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", *QUICK)
        assert_error(result, 1, text)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten(fastvae: Callable[..., Result], run_folder: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (run_folder / "checkpoints").iterdir())

    assert_error(fastvae("train", *QUICK, "--out", run_folder), 1, "holds a run already; add --resume")

    assert sorted((path.name, path.stat().st_mtime_ns) for path in (run_folder / "checkpoints").iterdir()) == before


def test_resume_goes_on_with_the_runs_own_configuration(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    ref = fastvae("train", *QUICK[:4], "--epochs", 4, "--kl-warmup", 20, "--out", tmp_path / "ref", "--json").json()
    fastvae("train", *QUICK, "--kl-warmup", 20, "--out", tmp_path / "run", "--json")

    result = fastvae("train", "--out", tmp_path / "run", "--resume", "--epochs", 4, "--threads", 1, "--json")

    comp = result.json()
    assert "resuming checkpoint-000000000030.safetensors at step 30" in result.err
    assert (comp["steps"], comp["threads"]) == (60, 1)
    assert (comp["elbo_test"], comp["elbo_train"]) == (ref["elbo_test"], ref["elbo_train"])
    again = fastvae("train", "--out", tmp_path / "run", "--resume", "--json").json()
    assert (again["elbo_test"], again["steps"]) == (ref["elbo_test"], 60)


def test_resume_refuses_options_that_contradict_the_run(fastvae: Callable[..., Result], run_folder: Path) -> None:
    for option in (("--latent-dim", 3), ("--optimizer", "sgd"), ("--seed", 1), ("--data", "mnist"), ("--hidden", 17)):
        result = fastvae("train", "--out", run_folder, "--resume", *option)
        assert_error(result, 1, f"the run in {run_folder} has {option[0]}")
    assert fastvae("train", *QUICK, "--out", run_folder, "--resume", "--json").json()["steps"] == 30


def test_resume_takes_options_that_say_what_the_default_came_to(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((300, 4)))
    run = ("train", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", *QUICK)
    fastvae(*run)
    same = ("--learning-rate", 0.001, "--test-fraction", 0.1, "--decoder-hidden", 16)

    assert fastvae(*run, "--resume", *same, "--json").json()["steps"] == 4
    assert_error(fastvae(*run, "--resume", "--learning-rate", 0.1), 1, "has --learning-rate 0.001, not 0.1")
    assert_error(fastvae(*run, "--resume", "--test-fraction", 0.2), 1, "has --test-fraction 0.1, not 0.2")


@pytest.mark.parametrize("subfolder", [".", "checkpoints"])
def test_resume_refuses_checkpoints_of_the_python_api(
    fastvae: Callable[..., Result], tmp_path: Path, subfolder: str
) -> None:
    model = VAE(2, hidden_dims=(4,), n_epochs=1, random_state=0, callbacks=[Checkpoint(tmp_path / subfolder)])
    model.fit(load("digits").train)

    assert_error(fastvae("train", "--out", tmp_path, "--resume"), 1, "was not written by fastvae train")


def test_runs_of_the_same_second_have_folders_of_their_own(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "now")

    def another_starts(*args: Any, **options: Any) -> Any:
        (tmp_path / "runs" / "digits-now").mkdir(parents=True, exist_ok=True)
        return load(*args, **options)

    monkeypatch.setattr("fastvae.data.load", another_starts)

    folders = [fastvae("train", *QUICK, "--json").json()["out"] for _ in range(2)]

    assert folders == ["runs/digits-now-2", "runs/digits-now-3"]
    assert_error(fastvae("train", "--hidden", "16777216,16777216"), 1, "out of memory")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-now", "digits-now-2", "digits-now-3"]


def test_fewer_rows_than_a_minibatch_are_noted_and_trained_on(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    result = fastvae("train", *QUICK, "--batch-size", 2000, "--epochs", 2, "--out", tmp_path / "run", "--json")
    assert result.json()["steps"] == 2
    assert "--batch-size 2000: every step takes all 1500 rows" in result.err
    again = fastvae("train", "--resume", "--out", tmp_path / "run", "--epochs", 3, "--json")
    assert again.json()["steps"] == 3
    assert_error(fastvae("train", "--resume", "--out", tmp_path / "run", "--epochs", 2), 1, "is at epoch 3 of 3")


def test_a_folder_in_use_is_refused(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        for options in ((), ("--resume",)):
            result = fastvae("train", *QUICK, "--out", tmp_path / "run", *options)
            assert_error(result, 1, f"another process trains in {tmp_path / 'run'}")

    assert list((tmp_path / "run").iterdir()) == []
    assert fastvae("train", *QUICK, "--out", tmp_path / "run").code == 0


def test_resume_refuses_other_data_under_the_same_name(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((300, 4))
    np.save(tmp_path / "rows.npy", rows)
    fastvae("train", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", *QUICK)
    np.save(tmp_path / "rows.npy", rows[::-1].copy())

    result = fastvae("train", "--out", tmp_path / "run", "--resume", "--epochs", 3)

    assert_error(result, 1, "these are not the data of the run")


def test_resume_names_a_damaged_checkpoint_and_takes_the_one_before(
    fastvae: Callable[..., Result], tmp_path: Path
) -> None:
    ref = fastvae("train", *QUICK, "--out", tmp_path / "run", "--checkpoint-every", 10, "--json").json()
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])

    result = fastvae("train", "--out", tmp_path / "run", "--resume", "--json")

    assert f"skipping a damaged checkpoint: cannot read checkpoint {newest}" in result.err
    assert "resuming checkpoint-000000000020.safetensors at step 20" in result.err
    assert result.json()["elbo_test"] == ref["elbo_test"]


def test_resume_on_another_backend_says_that_bits_differ(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    fastvae("train", *QUICK, "--backend", "cpp", "--out", tmp_path / "run")

    result = fastvae("train", "--out", tmp_path / "run", "--resume", "--backend", "reference", "--epochs", 3, "--json")

    assert "the result will differ in its last bits" in result.err
    assert result.json()["backend"] == "reference"


def test_divergence_names_the_last_good_checkpoint(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    args = ("train", *QUICK, "--optimizer", "sgd", "--learning-rate", 1000, "--out", tmp_path / "run")

    result = fastvae(*args)

    (kept,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert_error(result, 1, f"the last good checkpoint is {kept}")
    assert np.isfinite(read(kept).tensors["params"]).all()


def test_an_unwritable_folder_is_found_before_training(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = fastvae("train", *QUICK, "--out", tmp_path / "file" / "run")

    assert_error(result, 1, "file/run")
    assert "epoch" not in result.err


def test_a_folder_that_fills_up_names_the_newest_checkpoint(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastvae.checkpoint as checkpoint

    keep = checkpoint._write_durably

    def full(path: Path, *rest: Any) -> None:
        if path.stem[-2:] not in ("00", "10"):
            raise OSError(28, "No space left on device")
        keep(path, *rest)

    monkeypatch.setattr(checkpoint, "_write_durably", full)

    result = fastvae("train", *QUICK, "--checkpoint-every", 10, "--out", tmp_path / "run")

    assert_error(result, 1, "No space left on device")
    assert "the newest checkpoint is" in result.err
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].stem[-2:] == "10"


def test_pictures_hold_the_grey_levels(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)

    write_png(tmp_path / "x.png", levels / np.float32(255))

    np.testing.assert_array_equal(np.rint(255 * image.imread(tmp_path / "x.png")), levels)


def test_rows_that_are_no_images_have_no_pictures(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((300, 4)))

    result = fastvae("train", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", *QUICK)

    assert "no pictures were drawn" in result.err
    assert_error(fastvae("sample", tmp_path / "run", "--out", tmp_path / "x.png"), 1, "are no images")
    assert fastvae("sample", tmp_path / "run", "--out", tmp_path / "x.npy").code == 0


def test_a_run_without_a_test_set(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((300, 4)))
    args = ("train", "--data", tmp_path / "rows.npy", "--test-fraction", 0, "--out", tmp_path / "run", *QUICK)

    values = fastvae(*args, "--json").json()

    assert values["elbo_test"] is None
    assert values["elbo_train"] == pytest.approx(values["log_px_z"] - values["kl"])
    assert_error(fastvae("evaluate", tmp_path / "run"), 1, "without a test set")


def test_help_names_every_command_and_flag(fastvae: Callable[..., Result]) -> None:
    text = fastvae("--help").out
    for command in ("train", "evaluate", "sample", "reconstruct", "encode", "data", "info"):
        assert command in text
        assert fastvae(command, "--help").code == 0
    flags = "data data-dir backend precision threads latent-dim hidden activation likelihood optimizer learning-rate"
    text = fastvae("train", "--help").out
    for flag in (*flags.split(), "batch-size", "epochs", "n-draws", "seed", "out", "resume", "json"):
        assert f"--{flag}" in text
    assert fastvae().code == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastvae.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'sklearn', 'scipy', 'matplotlib', 'tqdm'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == "[]\n"


def test_training_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((300, 4, 4)))
    args = ["train", "--data", str(tmp_path / "images.npy"), *QUICK, "--backend", "reference"]
    code = (
        "import sys; from fastvae.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'sklearn', 'scipy', 'matplotlib', 'tqdm'} & set(sys.modules)), file=sys.stderr)"
    )
    out = ["--out", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *args, *out], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stderr.splitlines()[-1] == "[]"
    assert (tmp_path / "run" / "samples.png").exists()


def peak_memory(*command: str | Path) -> float:
    """Return the peak resident memory of a process in MB (2^20 bytes)."""
    # An interpreter of its own starts it: the system counts in what the starting process held, here pytest.
    code = (
        "import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\n"
        "_, status, usage = os.wait4(pid, 0); print(usage.ru_maxrss); sys.exit(os.waitstatus_to_exitcode(status))"
    )
    measure = [sys.executable, "-S", "-c", code, *map(str, command)]
    done = subprocess.run(measure, capture_output=True, text=True, timeout=300, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit here")
def test_a_run_on_mnist_takes_120_mb_more_than_numpy(data_root: Path, tmp_path: Path) -> None:
    if reason := backends.unavailable("cpp"):
        pytest.skip(reason)
    run = ("train", "--data", "mnist", "--data-dir", data_root, "--epochs", "2", "--out", tmp_path / "run")

    numpy_alone = peak_memory(sys.executable, "-c", "import numpy")
    peak = peak_memory(*COMMAND, *run, "--backend", "cpp")

    assert (tmp_path / "run" / "samples.png").exists()
    assert peak - numpy_alone <= 120


def test_a_closed_stdout_ends_quietly() -> None:
    process = subprocess.Popen([*COMMAND, "data"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    err = process.stderr.read()
    process.stderr.close()

    assert process.wait(timeout=60) == 1
    assert err == b""


def test_an_unforeseen_error_is_one_line_too(
    fastvae: Callable[..., Result], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the moon\nis full")

    monkeypatch.setattr(Model, "evaluate", fail)

    assert_error(fastvae("evaluate", run_folder), 1, "internal error, RuntimeError: the moon is full")
    monkeypatch.setenv("FASTVAE_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["evaluate", str(run_folder)])


def test_the_installed_command_answers(run_folder: Path) -> None:
    script = Path(sys.executable).with_name("fastvae")
    if not script.exists():
        pytest.skip("fastvae is not installed as a command here")
    result = subprocess.run(
        [script, "evaluate", str(run_folder), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert math.isfinite(json.loads(result.stdout)["elbo"])
    assert result.stderr == ""


def test_messages_name_flags_and_paths_stay(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "batch_size" / "learning_rate"
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", np.full((30, 2), 3.0))

    result = fastvae("train", "--data", folder / "x.npy", *QUICK, "--out", tmp_path / "run")
    assert_error(result, 1, f"{folder / 'x.npy'}: row 0, column 0")
    assert_error(result, 1, "use --likelihood gaussian with --mean identity")
    np.save(folder / "x.npy", np.ones((1, 2)))
    assert_error(fastvae("train", "--data", folder / "x.npy"), 1, "use --test-fraction 0")


def test_a_mapped_files_test_rows_are_said_to_be_its_last(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((300, 2)))
    args = ("train", "--data", tmp_path / "x.npy", *QUICK, "--out", tmp_path / "run")

    assert "test set: the last 10 % of rows, since the file is memory-mapped" in fastvae(*args).err
    assert "test set" not in fastvae(*args, "--resume").err


def test_resume_keeps_how_checkpoints_are_kept(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    run = ("train", *QUICK[:4], "--out", tmp_path / "run")
    fastvae(*run, "--epochs", 1, "--checkpoint-every", 4, "--keep", 2)

    fastvae(*run, "--resume", "--epochs", 2)

    assert [int(path.stem[11:]) for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [28, 30]


def test_early_stopping_keeps_the_best_and_holds_for_a_resumed_run(
    fastvae: Callable[..., Result], tmp_path: Path
) -> None:
    run = ("train", *QUICK[:4], "--learning-rate", 0.1, "--epochs", 60, "--out", tmp_path / "run")
    result = fastvae(*run, "--early-stopping", 2, "--tensorboard", "--json")
    values = result.json()
    bounds = [float(row.split(",")[9]) for row in (tmp_path / "run" / "history.csv").read_text().splitlines()[1:]]
    best = bounds.index(max(bounds)) + 1

    again = fastvae(*run[:5], *run[-2:], "--resume", "--json").json()

    assert (values["epochs"], len(bounds)) == (best + 2, best + 2)
    assert values["epochs"] < 60
    assert f"elbo_test has not got better for 2 epochs, best {max(bounds):.3f} in epoch {best}" in result.err
    assert (again["steps"], again["elbo_test"]) == (values["steps"], values["elbo_test"])
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    ref = fastvae("train", *run[1:5], *run[5:7], "--epochs", best, "--out", tmp_path / "ref", "--json").json()
    assert ref["elbo_test"] == values["elbo_test"]


def test_resume_refuses_fewer_epochs_than_are_done(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    run = ("train", *QUICK, "--out", tmp_path / "run")
    fastvae(*run)
    before = (tmp_path / "run" / "config.toml").read_text()

    result = fastvae(*run, "--resume", "--epochs", 1)

    assert_error(result, 1, f"nothing to do for --epochs 1: the run in {tmp_path / 'run'} is at epoch 2 of 2")
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_a_finished_run_that_is_resumed_says_so(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    folder = ("--out", tmp_path / "run")
    before = fastvae("train", *QUICK, *folder, "--json").json()
    result = fastvae("train", *folder, "--resume", "--json")
    assert "all 2 epochs are done; --epochs N with a larger N goes on" in result.err
    assert result.json()["elbo_test"] == before["elbo_test"]
    assert result.json()["report"] == str(tmp_path / "run" / "report.html")


def test_the_options_of_a_run_that_is_there_can_be_printed(fastvae: Callable[..., Result], tmp_path: Path) -> None:
    folder = ("--out", tmp_path / "run")
    fastvae("train", *QUICK, *folder)
    result = fastvae("train", *QUICK, *folder, "--print-config")
    assert result.code == 0
    assert "latent-dim = 2" in result.out


def test_resume_stops_at_a_checkpoint_of_a_newer_fastvae(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", *QUICK, "--out", tmp_path / "run")
    with monkeypatch.context() as later:
        later.setattr("fastvae.checkpoint.FORMAT_VERSION", 2)
        fastvae(*run)

    for result in (fastvae(*run, "--resume"), fastvae("evaluate", tmp_path / "run")):
        assert_error(result, 1, "was written by a newer fastvae (format version 2); upgrade fastvae")
        assert "skipping" not in result.err


def test_a_first_write_that_fails_names_the_file_and_leaves_no_folder(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastvae.checkpoint._write_durably", full)
    assert_error(fastvae("train", *QUICK, "--out", tmp_path / "a" / "b"), 1, "checkpoint-000000000000.safetensors")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr("numpy.save", full)
    args = ("train", *QUICK, "--out", tmp_path / "run")
    assert fastvae(*args).code == 0
    result = fastvae("encode", tmp_path / "run", "--out", tmp_path / "codes.npy")
    assert_error(result, 1, f"No space left on device: {tmp_path / 'codes.npy'}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def shell(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a shell's line in which "$@" is the command line of fastvae."""
    line = ["bash", "-c", command, "bash", *COMMAND]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


def test_a_reader_of_stderr_that_leaves_does_not_stop_a_run(tmp_path: Path) -> None:
    run = f"train {' '.join(QUICK[:4])} --epochs 50 --out {tmp_path / 'run'}"

    result = shell(f'"$@" {run} 2>&1 >{tmp_path / "out"} | head -1; exit ${{PIPESTATUS[0]}}')

    assert result.returncode == 0
    assert result.stdout.count("\n") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 50


def test_a_run_without_stderr_prints_nothing_else_on_stdout(tmp_path: Path) -> None:
    result = shell(f'"$@" train {" ".join(QUICK)} --out {tmp_path / "run"} --json 2>&-')

    assert result.returncode == 0
    assert json.loads(result.stdout)["epochs"] == 2
    assert shell('"$@" evaluate nowhere 2>&-').stdout == ""


@pytest.mark.parametrize("command", ["info", "data", "train", "--help"])
def test_a_missing_stdout_is_one_line(tmp_path: Path, command: str) -> None:
    result = shell(f'"$@" {command} >&-', cwd=tmp_path)

    assert result.returncode == 1
    assert result.stderr.startswith("fastvae: error: stdout is closed")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_stdout_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    result = shell('"$@" info >/dev/full')

    assert result.returncode == 1
    assert result.stderr.startswith("fastvae: error: No space left on device")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_while_the_command_is_imported_has_no_traceback() -> None:
    code = (
        "import sys, signal, fastvae.cli\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'fastvae.cli.commands': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "fastvae.cli.main(['info'])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout, result.stderr) == (130, "", "fastvae: interrupted\n")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with replace_file(tmp_path / "x") as first, replace_file(tmp_path / "x") as second:
        first.write(b"first")
        second.write(b"second")

    assert (tmp_path / "x").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_list_of_commands_is_not_cut(fastvae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in fastvae("--help").out.partition("Commands:")[2]


def test_the_table_names_units(fastvae: Callable[..., Result], run_folder: Path) -> None:
    assert re.search(r"^elbo +-\d+\.\d{3} nats$", fastvae("evaluate", run_folder).out, re.MULTILINE)
    again = fastvae("train", "--out", run_folder, "--resume").out
    assert re.search(r"^samples_per_second +[\d,]+$", again, re.MULTILINE)
