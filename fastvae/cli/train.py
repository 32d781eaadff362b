"""``fastvae train``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastvae import backends
from fastvae.cli.configuration import Origins, key_of, toml_line
from fastvae.cli.options import (
    PATH,
    absolute,
    complete_data,
    data_dir_option,
    draws,
    engine_options,
    init,
    json_option,
    note,
    print_json,
    print_table,
    report_damaged,
    seed_option,
    test_fraction_option,
    widths,
)
from fastvae.network import ACTIVATIONS, LIKELIHOODS, MEANS
from fastvae.optimizer import OPTIMIZERS
from fastvae.settings import TRAINING_BINARIZE
from fastvae.training.algorithm import ALGORITHMS, ESTIMATORS, algorithm_class

if TYPE_CHECKING:
    from fastvae.callbacks import Callback
    from fastvae.data import Dataset, Split
    from fastvae.errors import CheckpointError
    from fastvae.model import Model
    from fastvae.training.composed import Composed

__all__ = ["FLAGS", "as_toml", "not_a_run", "stored_options", "train"]

# flag -> parameter of the model
_MODEL = {
    "latent_dim": "latent_dim",
    "hidden": "hidden_dims",
    "decoder_hidden": "decoder_hidden_dims",
    "activation": "activation",
    "likelihood": "likelihood",
    "mean": "mean",
    "logvar_floor": "logvar_floor",
    "binarize": "binarize",
    "algorithm": "algorithm",
    "estimator": "estimator",
    "optimizer": "optimizer",
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
    "n_draws": "n_draws",
    "kl_weight": "kl_weight",
    "kl_warmup": "kl_warmup",
    "prior": "prior",
    "init": "init",
    "precision": "precision",
    "seed": "random_state",
}
# What a resumed run may change.
_SESSION = {"epochs": "n_epochs", "backend": "backend", "threads": "n_threads"}
_DATA = ("data", "test_fraction")
_CONTROLS = ("checkpoint_every", "keep", "early_stopping", "tensorboard")
# Options of how to call the command.
_NOT_IN_FILES = ("resume", "print_config", "as_json")
FLAGS = {parameter: "--" + flag.replace("_", "-") for flag, parameter in (_MODEL | _SESSION).items()}
FLAGS["test_fraction"] = "--test-fraction"


@click.command(context_settings={"show_default": True})
@click.option(
    "--data",
    default="digits",
    help="Named dataset (digits, mnist, freyface) or file.",
    shell_complete=complete_data,
)
@data_dir_option
@test_fraction_option
@click.option("--out", type=PATH, help="Folder of the run  [default: runs/DATA-TIME]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; options left out are those of the run.")
@click.option("--epochs", type=click.IntRange(1, 2**31 - 1), default=10, help="Passes over the data, in all.")
@click.option("--latent-dim", type=click.IntRange(1, 2**24), default=20, help="Dimensions of the code z (J).")
@click.option("--hidden", multiple=True, default=["500"], callback=widths, help="Encoder widths: 500, 500,300 or none.")
@click.option("--decoder-hidden", multiple=True, callback=widths, help="Decoder widths  [default: --hidden reversed]")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="tanh", help="Of the hidden layers.")
@click.option("--likelihood", type=click.Choice(LIKELIHOODS), default="bernoulli", help="p(x|z).")
@click.option("--mean", type=click.Choice(MEANS), default="sigmoid", help="Mean of the gaussian likelihood.")
@click.option("--logvar-floor", type=float, default=-10.0, help="Lowest log variance of the gaussian likelihood.")
@click.option("--binarize", type=click.Choice(TRAINING_BINARIZE), default="none", help="Draw pixels 0 or 1.")
@click.option("--algorithm", type=click.Choice(tuple(ALGORITHMS)), default="aevb", help="How to train.")
@click.option(
    "--estimator", type=click.Choice(tuple(ESTIMATORS)), default="sgvb-b", help="Of the bound that aevb ascends."
)
@click.option("--optimizer", type=click.Choice(tuple(OPTIMIZERS)), default="adam", help="Update rule.")
@click.option("--learning-rate", type=float, help="Step size  [default: 0.001, adagrad 0.02]")
@click.option(
    "--batch-size", type=click.IntRange(1, 2**24), default=100, help="Rows per step (M); all where they are fewer."
)
@click.option("--n-draws", type=click.IntRange(1, 2**16), default=1, help="Random draws of z per row and step (L).")
@click.option("--kl-weight", type=float, default=1.0, help="Weight of the KL divergence in the objective.")
@click.option("--kl-warmup", type=click.IntRange(0), default=0, help="Steps over which that weight rises from 0.")
@click.option("--prior/--no-prior", default=False, help="Weight prior N(0, I).")
@click.option("--init", default="fan_in", callback=init, help="Initial weights: fan_in or a standard deviation.")
@seed_option("Key of all randomness.", default=0)
@engine_options("auto")
@click.option("--precision", default="fp32", help="One that the backend has, see info.")
@click.option("--checkpoint-every", type=click.IntRange(1), help="Steps  [default: epoch ends, at most every 10 s]")
@click.option("--keep", type=click.IntRange(1), default=3, help="How many checkpoints to keep.")
@click.option(
    "--early-stopping", type=click.IntRange(1), help="End after so many epochs without a better bound; keep the best."
)
@click.option("--tensorboard/--no-tensorboard", default=False, help="Write the history for TensorBoard too.")
@click.option("--print-config", is_flag=True, help="Print all options and where each was set as TOML; train nothing.")
@json_option
@click.pass_context
def train(context: click.Context, /, **options: Any) -> None:
    """Train a VAE and write the folder of its run.

    The folder holds checkpoints, configuration, history, result, pictures and report.html, which shows it all.

    The run goes through the same steps on any number of threads, and after any interruption and --resume.
    """
    run = _Run(context, options)
    if options["print_config"]:
        print(run.configuration(context), end="")
        return
    run.load()
    with run.claimed():
        run.train()
        values = run.result()
    if options["as_json"]:
        print_json(values)
    else:
        print_table(values.items())


class _Run:
    """One session of a run: its model, data and folder."""

    def __init__(self, context: click.Context, options: dict[str, Any]) -> None:
        from fastvae.checkpoint import list_checkpoints

        options["data"] = absolute(options["data"])
        self.options = options
        self.given = {
            name for name in options if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        }
        if options["resume"] and options["out"] is None:
            raise click.UsageError("--resume needs --out, the folder of the run", context)
        self.folder = options["out"] or Path("runs") / f"{Path(options['data']).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.resumed = options["resume"] and bool(list_checkpoints(self.checkpoints))
        self.checkpointing: Any = None
        self.bound: Any = None
        if self.resumed:
            self._open()
        else:
            self._check_fresh()
            if options["resume"]:
                note(f"there is no run in {self.folder} to resume, so a new one starts there")
            self.model = _new_model(context, options)
            self.source = {name: options[name] for name in _DATA}
        self.data_dir = None if options["data_dir"] is None else str(options["data_dir"].expanduser().resolve())

    @property
    def kind(self) -> type[Composed[Any]]:
        """The class of the training algorithm."""
        return algorithm_class(self.model.algorithm, self.model.estimator)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _check_fresh(self) -> None:
        from fastvae.checkpoint import list_checkpoints
        from fastvae.errors import CheckpointError

        if list_checkpoints(self.checkpoints):
            raise CheckpointError(f"{self.folder} holds a run already; add --resume or name another --out")
        if list_checkpoints(self.folder):
            raise not_a_run(self.folder)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this process alone; folders made for it that stayed empty are removed again."""
        from fastvae.errors import CheckpointError
        from fastvae.files import lock_folder

        absent = [folder for folder in self.folder.parents if not folder.exists()]
        made = self._make_own_folder()
        with lock_folder(self.folder) as is_ours:
            if not is_ours:
                raise CheckpointError(f"another process trains in {self.folder}; wait for it or name another --out")
            try:
                if not self.resumed:
                    self._check_fresh()
                yield
            finally:
                for folder in (self.checkpoints, *([self.folder, *absent] if made else [])):
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def _make_own_folder(self) -> bool:
        """Make the folder, under the next free name if it is the default one; return whether it was not there."""
        from fastvae.files import make_folder, sync_folder

        make_folder(self.folder.parent)
        base, number = self.folder, 1
        while True:
            try:
                self.folder.mkdir()
            except FileExistsError:
                if self.options["out"] is not None:
                    return False
                number += 1
                self.folder = base.with_name(f"{base.name}-{number}")
            else:
                sync_folder(self.folder.parent)
                return True

    def _open(self) -> None:
        """Take model and configuration from the newest checkpoint; refuse flags that contradict it."""
        from fastvae.data.loading import DEFAULT_TEST_FRACTION
        from fastvae.data.registry import REGISTRY
        from fastvae.errors import CheckpointError
        from fastvae.model import Model
        from fastvae.model_file import read_model

        path, checkpoint, self.model = read_model(self.checkpoints, report_damaged, Model)
        if "run" not in checkpoint.metadata:
            raise not_a_run(path)
        self.source = checkpoint.metadata["run"]
        if self.options["data_dir"] is None and self.source["data_dir"] is not None:
            self.options["data_dir"] = Path(self.source["data_dir"])
        before = {flag: getattr(self.model, parameter) for flag, parameter in _MODEL.items()}
        before |= {flag: self.source[flag] for flag in _DATA}
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
        for name in _CONTROLS:
            if name not in self.given:
                self.options[name] = self.source.get(name, self.options[name])
        for flag in self.given & _SESSION.keys():
            setattr(self.model, _SESSION[flag], self.options[flag])
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

    def _check_epochs(self) -> None:
        from fastvae import settings
        from fastvae.errors import CheckpointError

        model, asked = self.model, self.options["epochs"]
        epoch = -(-model.n_steps_ // (model.n_samples_seen_ // settings.minibatch_rows(model)))
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
        values = self.options | stored_options(self.model, self._run_metadata(), self.model.backend)
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
        _write_text(self.folder / "config.toml", as_toml(stored_options(model, self._run_metadata(), engine)))
        _write_text(self.folder / "history.csv", history_csv(model.history_))

    def _run_metadata(self) -> dict[str, Any]:
        return {
            **{name: self.source[name] for name in _DATA},
            **{name: self.options[name] for name in _CONTROLS},
            "data_dir": self.data_dir,
        }

    def train(self) -> None:
        """Run all the steps that are left; checkpoints are kept whatever happens."""
        from fastvae.callbacks import Checkpoint, EarlyStopping, TensorBoard
        from fastvae.errors import DivergenceError
        from fastvae.training import fitting

        self.checkpointing = Checkpoint(
            self.checkpoints,
            metadata=lambda: {"run": self._run_metadata()},
            every=self.options["checkpoint_every"],
            keep=self.options["keep"],
            on_saved=self._write_texts,
        )
        callbacks: list[Callback] = [self.checkpointing]
        if self.options["early_stopping"]:
            callbacks.append(EarlyStopping(patience=self.options["early_stopping"], restore_best=True))
        if self.options["tensorboard"]:
            callbacks.append(TensorBoard(self.folder / "tensorboard"))
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
            f"go on with: fastvae train --out {self.folder} --resume"
        )

    def result(self) -> dict[str, Any]:
        """Measure the bounds, draw the pictures and return the run's figures."""
        from fastvae import __version__

        model, state, test = self.model, self.model.state_, self.split.test
        engine = backends.load(model.backend)
        values = {
            **(self._bounds() if self.kind.has_bound else self._last_epoch()),
            "algorithm": model.algorithm,
            "samples_per_second": state.samples / max(state.seconds, 1e-9),
            "seconds": state.seconds,
            "steps": model.n_steps_,
            "epochs": state.epochs_closed,
            "data": self.source["data"],
            "n_train": self.split.train.n_rows,
            "n_test": 0 if test is None else test.n_rows,
            "backend": engine.NAME,
            "isa": backends.isa_level(engine),
            "precision": model.precision,
            "threads": model.n_threads or backends.default_threads(),
            "seed": model.seed_,
            "version": __version__,
            "checkpoint": str(self.checkpointing.newest),
            "out": str(self.folder),
        }
        _write_text(self.folder / "result.json", json.dumps(values, indent=2) + "\n")
        self._draw()
        return values

    def _bounds(self) -> dict[str, Any]:
        """Measure the bounds of both parts of the data."""
        self.bound = self.model.evaluate(self.split.train, n_draws=draws("train"))
        train = self.bound.summary()
        test = None
        if self.split.test is not None:
            self.bound = self.model.evaluate(self.split.test, n_draws=draws("test"))
            test = self.bound.summary()
        bound = test or train
        return {
            "elbo_train": train["elbo"],
            "elbo_test": None if test is None else test["elbo"],
            "elbo_standard_error": bound["elbo_standard_error"],
            "log_px_z": bound["log_px_z"],
            "kl": bound["kl"],
            "active_units": bound["active_units"],
            "evaluation_draws": bound["n_draws"],
            "evaluation_draws_train": train["n_draws"],
            "estimator": bound["estimator"],
            "treatment": bound["treatment"],
        }

    def _last_epoch(self) -> dict[str, Any]:
        """Return what an algorithm without a bound reported of its last epoch."""
        return {f"{name}_train": self.model.history_[name][-1] for name in self.kind.statistics}

    def _draw(self) -> None:
        from fastvae.report import comparison_grid, grid, write_png

        split, rows = ("train", self.split.train) if self.split.test is None else ("test", self.split.test)
        del self.split  # so that the pictures do not come on top of the training set
        if (shape := self.model.image_shape_) is None:
            note("the rows are no images, so no pictures were drawn")
        else:
            first = rows.select(slice(min(50, rows.n_rows)))
            if self.kind.encodes:
                pairs = comparison_grid([first.as_seen(), self.model.reconstruct(first)], shape)
                write_png(self.folder / "reconstructions.png", pairs)
            write_png(self.folder / "samples.png", grid(self.model.sample(100), shape))
        self._report(split, rows)

    def _report(self, split: str, rows: Dataset) -> None:
        from fastvae.data.labels import known_labels
        from fastvae.report.page import write_subject
        from fastvae.report.subject import of_run

        labels = known_labels(rows, split=split, data_dir=self.data_dir)
        known = {"dataset": rows, "split": split, "labels": labels, "bound": self.bound}
        write_subject(
            self.folder / "report.html", of_run(self.folder, self.model, {"run": self._run_metadata()}, **known)
        )


def stored_options(model: Model, run: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """Return the options of train that repeat a run, by the names of their arguments.

    An option is None where the run left it out: what its default came to follows from the others.
    """
    values = {flag: getattr(model, parameter) for flag, parameter in (_MODEL | _SESSION).items()}
    values |= {name: "none" for name in ("hidden", "decoder_hidden") if values[name] == ()}
    return values | {"backend": backend} | {name: run.get(name) for name in (*_DATA, "data_dir", *_CONTROLS)}


def as_toml(values: Mapping[str, Any]) -> str:
    """Return options of train as the lines of a file for --config."""
    options = {option.name: key_of(option) for option in train.params if isinstance(option, click.Option)}
    lines = [toml_line(key, values[name]) for name, key in options.items() if values.get(name) is not None]
    return "\n".join(lines) + "\n"


def _new_model(context: click.Context, options: dict[str, Any]) -> Model:
    from fastvae import settings
    from fastvae.model import Model

    model = Model(**{parameter: options[flag] for flag, parameter in (_MODEL | _SESSION).items()})
    if model.mean != "sigmoid" and model.likelihood != "gaussian":
        raise click.UsageError(f"--mean {model.mean} needs --likelihood gaussian", context)
    try:
        settings.check(model)
    except ValueError as error:
        raise click.UsageError(str(error), context) from error
    return model


def not_a_run(path: Path) -> CheckpointError:
    """Return the error about a checkpoint of a model that was trained in Python."""
    from fastvae.errors import CheckpointError

    return CheckpointError(
        f"{path} was not written by fastvae train and does not name its data; "
        "go on in Python with VAE.load and resume, or name another --out"
    )


def _shown(value: Any) -> str:
    """Write a value as on the command line."""
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple | list) else str(value)


def _engine_name(backend: str, isa: str | None) -> str:
    return backend if isa is None else f"{backend} ({isa})"


def _write_text(path: Path, text: str) -> None:
    from fastvae.files import replace_file

    with replace_file(path) as stream:
        stream.write(text.encode(errors="surrogateescape"))  # a path need not be text
