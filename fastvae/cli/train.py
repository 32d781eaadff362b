"""``fastvae train``."""

from __future__ import annotations

from typing import Any

import click

from fastvae.cli.options import (
    PATH,
    complete_data,
    data_dir_option,
    engine_options,
    init,
    json_option,
    print_json,
    print_table,
    seed_option,
    test_fraction_option,
    widths,
)
from fastvae.cli.run_results import write_results
from fastvae.cli.session import Session
from fastvae.network import ACTIVATIONS, LIKELIHOODS, MEANS
from fastvae.optimizer import OPTIMIZERS
from fastvae.settings import TRAINING_BINARIZE
from fastvae.training.algorithm import ALGORITHMS, ESTIMATORS

__all__ = ["train"]


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
    "--estimator",
    type=click.Choice(tuple(ESTIMATORS)),
    default="sgvb-b",
    help="Of the bound that aevb ascends; iwae, the importance-weighted one, wants --n-draws of 5 or so.",
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
    session = Session(context, options)
    if options["print_config"]:
        print(session.configuration(context), end="")
        return
    session.load()
    with session.folder.claimed(is_new=not session.resumed):
        session.train()
        values = write_results(session)
    if options["as_json"]:
        print_json(values)
    else:
        print_table(values.items())
