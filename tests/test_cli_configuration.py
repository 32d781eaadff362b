"""Options from a file and from the environment, completion, examples, and what reaches a terminal."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import termios
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from command_line import COMMAND, QUICK, Result, assert_error

from fastvae.checkpoint import list_checkpoints, read
from fastvae.cli.commands import cli
from fastvae.cli.examples import EXAMPLES
from fastvae.cli.run_options import stored_options
from fastvae.model import Model

# Variables that mean something else, by the documentation.
TAKEN = {"FASTVAE_DATA", "FASTVAE_DATA_URL", "FASTVAE_REQUIRE", "FASTVAE_SIMD_LEVEL", "FASTVAE_DEBUG"}


def commands(command: click.Command = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(words), command
    for name, child in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(child, (*words, name))


COMMANDS = dict(commands())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write run.toml in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("run.toml").write_text(text)
        return Path("run.toml")

    return write


def origins(printed: str) -> dict[str, str]:
    """Return where --print-config says that each option was set."""
    return dict(re.findall(r"^(?:# )?([a-z-]+) (?:= .*?  # |is not set, )(.*)$", printed, re.MULTILINE))


def test_flags_go_before_the_environment_before_the_file_before_defaults(
    fastvae: Callable[..., Result], file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file("epochs = 2\nbatch-size = 20\nseed = 3\n[train]\nseed = 4\nprior = true\nhidden = [30, 20]\n")
    monkeypatch.setenv("FASTVAE_TRAIN_BATCH_SIZE", "30")
    monkeypatch.setenv("FASTVAE_TRAIN_LATENT_DIM", "7")

    printed = fastvae("train", "--config", "run.toml", "--print-config", "--latent-dim", 8)

    values, where = tomllib.loads(printed.out), origins(printed.out)
    assert printed.code == 0
    expected = {"epochs": 2, "batch-size": 30, "seed": 4, "prior": True, "hidden": [30, 20], "latent-dim": 8}
    assert values == {**values, **expected, "keep": 3}
    assert "learning-rate" not in values
    assert {key: where[key] for key in ("latent-dim", "batch-size", "seed", "keep", "threads")} == {
        "latent-dim": "flag",
        "batch-size": "environment, FASTVAE_TRAIN_BATCH_SIZE",
        "seed": "file, run.toml",
        "keep": "default",
        "threads": "default",
    }
    assert "# decoder-hidden = [20, 30]  # default" in printed.out
    assert "# learning-rate = 0.001  # default" in printed.out
    assert where.keys() == {p.opts[0][2:] for p in COMMANDS["train"].params} - {
        *("resume", "print-config", "json", "config")
    }
    assert [path.name for path in Path().iterdir()] == ["run.toml"]  # nothing was trained


@pytest.mark.parametrize(
    "options",
    [
        ("--hidden", "16,8", "--init", "0.05", "--prior", "--optimizer", "adagrad", "--binarize", "dynamic"),
        ("--hidden", "none", "--likelihood", "gaussian", "--checkpoint-every", "7", "--backend", "reference"),
    ],
)
def test_the_stored_options_of_a_run_repeat_it_bit_for_bit(
    fastvae: Callable[..., Result], file: Callable[[str], Path], options: tuple[str, ...]
) -> None:
    np.save('a "b"\n.npy', np.random.default_rng(0).random((300, 5)))
    data = ("--data", 'a "b"\n.npy', "--test-fraction", "0.2")
    fastvae("train", *data, "--latent-dim", 2, "--epochs", 2, "--seed", 2**64 - 1, *options, "--out", "run")

    stored = fastvae("config", "run").out
    file(stored)
    again = fastvae("train", "--config", "run.toml", "--out", "again")

    assert (again.code, Path("run/config.toml").read_text()) == (0, stored)
    ref, comp = (read(list_checkpoints(Path(run) / "checkpoints")[-1]) for run in ("run", "again"))
    assert ref.tensors.keys() == comp.tensors.keys()
    for name in ref.tensors:
        np.testing.assert_array_equal(comp.tensors[name], ref.tensors[name], strict=True)
    assert fastvae("config", "again").out == stored


def test_every_option_of_training_is_stored() -> None:
    session = {"out", "resume", "print_config", "as_json", "config"}
    stored = stored_options(Model(), {}, "cpp")
    assert stored.keys() == {option.name for option in COMMANDS["train"].params} - session


def test_what_goes_before_when_a_run_was_resumed(
    fastvae: Callable[..., Result], file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fastvae("train", *QUICK, "--out", "run")
    resume = ("train", "--out", "run", "--resume", "--config")

    shown = fastvae(*resume, file("latent-dim = 2\nepochs = 3"), "--print-config")
    refused = fastvae(*resume, file("latent-dim = 3"))
    monkeypatch.setenv("FASTVAE_TRAIN_HIDDEN", "16 16")
    refused_too = fastvae(*resume, file("epochs = 3"))
    monkeypatch.setenv("FASTVAE_TRAIN_HIDDEN", "16")
    done = fastvae(*resume, file("latent-dim = 2\nepochs = 3"), "--json")

    where = origins(shown.out)
    assert (where["epochs"], where["latent-dim"], where["seed"]) == ("file, run.toml", "file, run.toml", "run, run")
    assert_error(refused, 1, "the run in run has --latent-dim 2, not 3;")
    assert_error(refused, 1, "; --latent-dim is set in run.toml")
    assert_error(refused_too, 1, "has --hidden 16, not 16,16;")
    assert_error(refused_too, 1, "; --hidden is set by FASTVAE_TRAIN_HIDDEN")
    assert done.json()["epochs"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "'--epochs': 0 is not in the range 1<=x<=2147483647; --epochs is set in run.toml"),
        ("epochs = 1.5", "'--epochs': '1.5' is not a valid integer range; --epochs is set in run.toml"),
        ("epochs = true", "'--epochs': 'true' is not a valid integer range; --epochs is set in run.toml"),
        ("prior = 5", "'5' is not a valid boolean"),
        ("backend = 'cud'", "'cud' is not one of 'auto', 'cuda'"),
        ("learning-rate = -1", "--learning-rate must lie in (0, 1000], got -1.0; --learning-rate is set in run.toml"),
        ("epochs = [1, 2]", "run.toml: epochs must be one value, not [1, 2]"),
        ("hidden = []", "run.toml: hidden must be values, not []"),
        ("latent_dim = 3", "run.toml: unknown key 'latent_dim'; did you mean 'latent-dim'?"),
        ("[train]\nhiden = 3", "run.toml: [train] unknown key 'hiden'; did you mean 'hidden'?"),
        ("[reproduce.fig2]\nsample = 3", "run.toml: [reproduce.fig2] unknown key 'sample'; did you mean 'samples'?"),
        ("[reproduce.fig9]\nseed = 3", "run.toml: unknown table [reproduce.fig9]; did you mean [reproduce."),
        ("[trian]", "run.toml: unknown table [trian]; did you mean [train]?"),
        ("n-chains = 3", "run.toml: 'n-chains' is no option of train; put it below [impute], whose it is"),
        ("config = 'x'", "run.toml: unknown key 'config'"),
        ("epochs = ", "--config run.toml is not a TOML file: Invalid value (at end of document)"),
        ("epochs = 'caf\xe9'", "--config run.toml is not a TOML file: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_file_is_one_line(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_bytes(text.encode("latin-1"))
    assert_error(fastvae("train", "--config", "run.toml"), 2, message)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_file_or_variable_that_is_none_is_one_line(
    fastvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_error(fastvae("train", "--config", "run.toml"), 2, "cannot read --config run.toml: No such file")
    assert_error(fastvae("train", "--config", tmp_path), 2, "Is a directory")
    monkeypatch.setenv("FASTVAE_TRAIN_EPOCHS", "0")
    assert_error(fastvae("train"), 2, "0 is not in the range 1<=x<=2147483647; --epochs is set by FASTVAE_TRAIN_EPOCHS")
    monkeypatch.setenv("FASTVAE_TRAIN_EPOCS", "3")
    assert_error(fastvae("train"), 2, "FASTVAE_TRAIN_EPOCS, which is no option; did you mean FASTVAE_TRAIN_EPOCHS?")


def test_one_file_serves_several_commands(
    fastvae: Callable[..., Result], run_folder: Path, file: Callable[[str], Path]
) -> None:
    path = file("data = 'digits'\n[train]\nepochs = 5\n[evaluate]\nn-draws = 3\njson = true\n[sample]\nn-samples = 4")
    assert fastvae("evaluate", run_folder, "--config", path).json()["n_draws"] == 3
    assert fastvae("train", "--config", path, "--print-config").out.splitlines()[4] == "epochs = 5  # file, run.toml"
    path = file("\ufeff[data.list]\njson = true")  # as some editors begin a file of UTF-8
    assert fastvae("data", "list", "--config", path).json()["digits"]["rows"] == 1797


def test_every_option_has_a_variable_of_its_own() -> None:
    names = [
        option.envvar
        for words, command in COMMANDS.items()
        for option in command.params
        if words and isinstance(option, click.Option)
    ]
    assert len(names) > 100
    assert all(isinstance(name, str) and re.fullmatch(r"FASTVAE_[A-Z0-9_]+", name) for name in names)
    assert len(set(names)) == len(names)
    assert not TAKEN & set(names)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_help_ends_in_examples_that_parse(
    fastvae: Callable[..., Result], file: Callable[[str], Path], words: str
) -> None:
    file("epochs = 1")
    shown = fastvae(*words.split(), "--help") if words != "bench gpu" else None

    examples = [re.search(r"fastvae [^>)]*", line)[0] for line in EXAMPLES[words]]  # type: ignore[index]
    assert examples
    assert shown is None or all(f"  {line}\n" in shown.out + "\n" for line in EXAMPLES[words])
    for example in examples:
        name, command, args = "fastvae", cli, shlex.split(example)[1:]
        context = command.make_context(name, args)
        while isinstance(command, click.Group) and context.args + context._protected_args:
            name, command, args = command.resolve_command(context, context._protected_args + context.args)
            context = command.make_context(name, args, parent=context)
        assert context.command_path.startswith(f"fastvae {words}".strip())


def complete(line: str, *, shell: str = "bash") -> list[str]:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_FASTVAE_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, **words})
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fastvae tra", ["plain,train", "plain,traverse"]),
        ("fastvae train --data m", ["plain,mnist"]),
        ("fastvae train --data x.n", ["file,x.n"]),
        ("fastvae train --likelihood ", ["plain,bernoulli", "plain,gaussian"]),
        ("fastvae train --conf", ["plain,--config"]),
        ("fastvae train --config ", ["file,"]),
        ("fastvae evaluate runs/", ["file,runs/"]),
        ("fastvae data fetch f", ["plain,freyface"]),
    ],
)
def test_completion_offers_datasets_files_and_choices(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_fastvae(
    fastvae: Callable[..., Result], tmp_path: Path, shell: str
) -> None:
    script = fastvae("completion", shell)
    assert script.code == 0
    assert f"_FASTVAE_COMPLETE={shell}_complete" in script.out
    if shell == "bash":
        (tmp_path / "fastvae").write_text(f"#!/bin/sh\nexec {shlex.join(COMMAND)}\n")
        (tmp_path / "fastvae").chmod(0o755)
        ask = 'COMP_WORDS=(fastvae tra); COMP_CWORD=1; _fastvae_completion fastvae; echo "${COMPREPLY[@]}"'
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        line = ["bash", "-c", script.out + ask]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True, env=env)
        assert done.stdout == "train traverse\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_escape_sequences_are_printed_and_bars_on_terminals_alone(tmp_path: Path, terminal: bool) -> None:
    train = [*COMMAND, "train", *QUICK, "--out", str(tmp_path / "run")]
    options: dict[str, Any] = {"env": {**os.environ, "NO_COLOR": "1"}, "stdout": subprocess.PIPE}
    if terminal:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        process = subprocess.Popen(train, stderr=theirs, **options)
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # how Linux says that the other end was closed
            pass
        os.close(ours)
    else:
        process = subprocess.Popen(train, stderr=subprocess.PIPE, **options)
        assert process.stderr is not None
        shown = process.stderr.read()
        process.stderr.close()
    assert process.stdout is not None
    shown += process.stdout.read()
    process.stdout.close()

    assert process.wait(timeout=60) == 0
    assert b"\x1b" not in shown
    assert (b"\r" in shown.replace(b"\r\n", b"\n")) == (b" steps/s" in shown) == terminal
    assert b"elbo_test" in shown
