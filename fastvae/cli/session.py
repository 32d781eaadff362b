"""One session of a run of ``fastvae train``: it begins the run, or goes on with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastvae import backends
from fastvae.cli.configuration import Origins, key_of, toml_line
from fastvae.cli.options import absolute, note, report_damaged
from fastvae.cli.run_folder import RunFolder, not_a_run
from fastvae.cli.run_options import CONTROLS, DATA, MODEL, SESSION, as_toml, new_model, stored_options
from fastvae.training.algorithm import algorithm_class

if TYPE_CHECKING:
    from fastvae.callbacks import Callback
    from fastvae.data import Split
    from fastvae.model import Model
    from fastvae.training.composed import Composed

__all__ = ["Session"]

# Options of how to call the command.
_NOT_IN_FILES = ("resume", "print_config", "as_json")


class Session:
    """One session of a run: its model, data and folder."""

    def __init__(self, context: click.Context, options: dict[str, Any]) -> None:
        options["data"] = absolute(options["data"])
        self.options, self.command = options, context.command
        self.given = {
            name for name in options if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        }
        if options["resume"] and options["out"] is None:
            raise click.UsageError("--resume needs --out, the folder of the run", context)
        self.folder = RunFolder(options["out"], options["data"])
        self.resumed = options["resume"] and self.folder.is_begun
        self.checkpointing: Any = None
        if self.resumed:
            self._open()
        else:
            if not options["print_config"]:
                self.folder.check_fresh()
            if options["resume"]:
                note(f"there is no run in {self.folder} to resume, so a new one starts there")
            self.model = new_model(context, options)
            self.source = {name: options[name] for name in DATA}
        self.data_dir = None if options["data_dir"] is None else str(options["data_dir"].expanduser().resolve())

    @property
    def kind(self) -> type[Composed[Any]]:
        """The class of the training algorithm."""
        return algorithm_class(self.model.algorithm, self.model.estimator)

    def _open(self) -> None:
        """Take model and configuration from the newest checkpoint; refuse flags that contradict it."""
        from fastvae.data.loading import DEFAULT_TEST_FRACTION
        from fastvae.data.registry import REGISTRY
        from fastvae.errors import CheckpointError
        from fastvae.model import Model
        from fastvae.model_file import read_model

        path, checkpoint, self.model = read_model(self.folder.checkpoints, report_damaged, Model)
        if "run" not in checkpoint.metadata:
            raise not_a_run(path)
        self.source = checkpoint.metadata["run"]
        if self.options["data_dir"] is None and self.source["data_dir"] is not None:
            self.options["data_dir"] = Path(self.source["data_dir"])
        before = {flag: getattr(self.model, parameter) for flag, parameter in MODEL.items()}
        before |= {flag: self.source[flag] for flag in DATA}
        # What was left to a default is compared by what it came to.
        before["decoder_hidden"] = self.model.network_.decoder_hidden
        before["learning_rate"] = self.model.optimizer_.learning_rate
        if before["test_fraction"] is None and self.source["data"] not in REGISTRY:
            before["test_fraction"] = DEFAULT_TEST_FRACTION
        for flag in sorted(self.given & before.keys()):
            if self.options[flag] != before[flag]:
                option = "--" + flag.replace("_", "-")
                value = f"no {option}" if before[flag] is None else f"{option} {_shown(before[flag])}"
                raise CheckpointError(
                    f"the run in {self.folder} has {value}, not {_shown(self.options[flag])}; "
                    "leave the option out or start another run"
                )
        self._check_epochs()
        for name in CONTROLS:
            if name not in self.given:
                self.options[name] = self.source.get(name, self.options[name])
        for flag in self.given & SESSION.keys():
            setattr(self.model, SESSION[flag], self.options[flag])
        if "threads" not in self.given:
            self.model.n_threads = None
        engine, old = backends.load(self.model.backend), checkpoint.metadata["engine"]
        isa = backends.isa_level(engine)
        if (engine.NAME, isa) != (old["backend"], old["isa"]):
            note(
                f"resuming on {_engine_name(engine.NAME, isa)} what "
                f"{_engine_name(old['backend'], old['isa'])} began: the result will differ in its last bits"
            )
        note(f"resuming {path.name} at step {self.model.n_steps_}")
        if self.model.n_steps_ >= self.model.n_epochs * self._steps_per_epoch:
            note(f"all {self.model.n_epochs} epochs are done; --epochs N with a larger N goes on")

    @property
    def _steps_per_epoch(self) -> int:
        from fastvae import settings

        return self.model.n_samples_seen_ // settings.minibatch_rows(self.model)

    def _check_epochs(self) -> None:
        from fastvae.errors import CheckpointError

        model, asked = self.model, self.options["epochs"]
        epoch = -(-model.n_steps_ // self._steps_per_epoch)
        if "epochs" in self.given and asked < epoch:
            raise CheckpointError(
                f"nothing to do for --epochs {asked}: the run in {self.folder} is at epoch {epoch} of "
                f"{model.n_epochs}; leave the option out or raise it"
            )

    def load(self) -> None:
        """Read the data."""
        from fastvae.data import load

        fraction = self.source["test_fraction"]
        split = load(self.source["data"], data_dir=self.options["data_dir"], test_fraction=fraction)
        if split.test is not None and split.test.is_mapped and not self.resumed:
            share = split.test.n_rows / (split.train.n_rows + split.test.n_rows)
            note(
                f"test set: the last {100 * share:.3g} % of rows, since the file is memory-mapped; "
                "shuffle the file if its order means something"
            )
        if self.model.batch_size > split.train.n_rows and not self.resumed:
            note(f"--batch-size {self.model.batch_size}: every step takes all {split.train.n_rows} rows")
        self.split: Split = split

    def configuration(self, context: click.Context) -> str:
        """Return the options of this session as TOML, each with where it was set.

        What is a comment was left out, with what it came to where that follows from other options.
        """
        from fastvae import settings

        origins, lines = context.ensure_object(Origins), []
        values = self.options | stored_options(self.model, self.metadata(), self.model.backend)
        derived = {
            "decoder_hidden": settings.network(self.model, 1).decoder_hidden,
            "learning_rate": settings.optimizer(self.model).learning_rate,
        }
        for option in context.command.params:
            if isinstance(option, click.Option) and option.name in values and option.name not in _NOT_IN_FILES:
                value = values[option.name]
                is_of_run = self.resumed and option.name not in {*self.given, "data_dir"}
                where = f"run, {self.folder}" if is_of_run else origins.of(option)
                if value == "auto":
                    where += f"; {backends.resolve()} here"
                line = toml_line(key_of(option), derived.get(option.name) if value is None else value, where)
                lines.append(f"# {line}" if value is None and option.name in derived else line)
        return "\n".join(lines) + "\n"

    def _write_texts(self, model: Model) -> None:
        """Write configuration and history beside the checkpoints."""
        from fastvae.callbacks import history_csv

        engine = backends.load(model.backend).NAME
        self.folder.write("config.toml", as_toml(self.command, stored_options(model, self.metadata(), engine)))
        self.folder.write("history.csv", history_csv(model.history_))

    def metadata(self) -> dict[str, Any]:
        """Return what checkpoints say of the run besides the model."""
        return {
            **{name: self.source[name] for name in DATA},
            **{name: self.options[name] for name in CONTROLS},
            "data_dir": self.data_dir,
        }

    def train(self) -> None:
        """Run all the steps that are left; checkpoints are kept whatever happens."""
        from fastvae.callbacks import Checkpoint, EarlyStopping, TensorBoard
        from fastvae.errors import DivergenceError
        from fastvae.training import fitting

        self.checkpointing = Checkpoint(
            self.folder.checkpoints,
            metadata=lambda: {"run": self.metadata()},
            every=self.options["checkpoint_every"],
            keep=self.options["keep"],
            on_saved=self._write_texts,
        )
        callbacks: list[Callback] = [self.checkpointing]
        if self.options["early_stopping"]:
            callbacks.append(EarlyStopping(patience=self.options["early_stopping"], restore_best=True))
        if self.options["tensorboard"]:
            callbacks.append(TensorBoard(self.folder.path / "tensorboard"))
        self.model.callbacks, self.model.verbose = callbacks, 1
        fit = fitting.resume if self.resumed else fitting.fit
        try:
            fit(self.model, self.split.train, eval_set=self.split.test if self.kind.has_bound else None)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._interrupted()) from None
        except Exception as error:
            newest = self.checkpointing.newest
            if newest is not None and not isinstance(error, DivergenceError):  # which names it itself
                error.add_note(f"the newest checkpoint is {newest}")
            raise

    def _interrupted(self) -> str:
        newest = self.checkpointing.newest
        if newest is None:
            return "interrupted before the first step"
        return (
            f"interrupted at step {self.model.n_steps_}, saved in {newest}; "
            f"go on with: fastvae train --out {shlex.quote(str(self.folder))} --resume"
        )


def _shown(value: Any) -> str:
    """Write a value as on the command line."""
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple | list) else str(value)


def _engine_name(backend: str, isa: str | None) -> str:
    return backend if isa is None else f"{backend} ({isa})"
