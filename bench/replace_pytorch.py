"""How much sooner an epoch of an existing PyTorch program is over when fastvae trains its module.

``python -m fastvae.bench.replace_pytorch --out bench/results/replace-pytorch.json`` measures the page
docs/guide/replace-pytorch.md on MNIST: 784-400-20-400-784, minibatches of 128, Adam 1e-3, float32, the same rows as
float32 and the same first weights for everybody, everybody in one process on the same threads, in turns. fastvae's time
has the import of the weights, the training, and their way back into the module; no time has the loading of the data.
On a machine with other work the seconds of processor time say more than those of the clock, and one thread more than
several, which would wait for each other: the result has both, and the load.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fastvae import VAE, backends
from fastvae.bench.measure import machine
from fastvae.cli.rows import out_option
from fastvae.data import load
from fastvae.errors import DataError
from fastvae.kernels import Array

__all__ = ["main", "measure"]

_BATCH, _LEARNING_RATE = 128, 1e-3
# Threads of one library may spin on for some milliseconds after their last work.
_PAUSE = 0.3


class Module(torch.nn.Module):  # type: ignore[misc]
    """The variational auto-encoder of someone who uses PyTorch, named as in its example."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(784, 400)
        self.fc21 = torch.nn.Linear(400, 20)
        self.fc22 = torch.nn.Linear(400, 20)
        self.fc3 = torch.nn.Linear(20, 400)
        self.fc4 = torch.nn.Linear(400, 784)

    def forward(self, x: Any) -> tuple[Any, Any, Any]:
        """Return logits at a drawn z, mu and logvar."""
        h = torch.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.fc4(torch.relu(self.fc3(z))), mu, logvar


def _kl(mu: Any, logvar: Any) -> Any:
    return -0.5 * torch.sum(1 + logvar - mu.square() - logvar.exp())


def _as_the_example(module: Any, x: Array, n_epochs: int) -> None:
    """Train as PyTorch's example does: a DataLoader, probabilities in the loss, the loss read at every step."""
    rows = DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=_BATCH, shuffle=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE)
    total = 0.0
    for _ in range(n_epochs):
        for (batch,) in rows:
            optimizer.zero_grad()
            logits, mu, logvar = module(batch)
            loss = functional.binary_cross_entropy(torch.sigmoid(logits), batch, reduction="sum") + _kl(mu, logvar)
            loss.backward()
            total += loss.item()
            optimizer.step()


def _tuned(module: Any, x: Array, n_epochs: int) -> None:
    """Train as PyTorch's experts would: rows by one index, logits in the loss, fused Adam, nothing read back."""
    rows = torch.from_numpy(x)
    optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE, fused=True)
    for _ in range(n_epochs):
        for index in torch.randperm(len(rows)).split(_BATCH):
            batch = rows[index]
            optimizer.zero_grad(set_to_none=True)
            logits, mu, logvar = module(batch)
            loss = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum") + _kl(mu, logvar)
            loss.backward()
            optimizer.step()


def _fastvae(module: Any, x: Array, n_epochs: int) -> None:
    """Train by fastvae."""
    vae = VAE.from_torch(
        module.state_dict(),
        batch_size=_BATCH,
        learning_rate=_LEARNING_RATE,
        n_epochs=n_epochs,
        n_threads=torch.get_num_threads(),
    )
    vae.resume(x)
    module.load_state_dict(vae.state_dict("pytorch-examples"))


CONTESTANTS: dict[str, Callable[[Any, Array, int], None]] = {
    "PyTorch, as its example": _as_the_example,
    "PyTorch, tuned": _tuned,
    "fastvae": _fastvae,
}


def _bound(module: Any, x: Array) -> float:
    """Return the module's mean bound in nats by PyTorch alone, one draw."""
    torch.manual_seed(0)
    rows = torch.from_numpy(x)
    with torch.inference_mode():
        logits, mu, logvar = module(rows)
        loss = functional.binary_cross_entropy_with_logits(logits, rows, reduction="sum") + _kl(mu, logvar)
    return -float(loss.item()) / len(x)


def measure(
    x: Array, x_test: Array, *, n_epochs: int, rounds: int, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Time everybody in turns, after a turn that does not count.

    Parameters
    ----------
    x, x_test : ndarray of shape (N, 784), float32
    n_epochs : int
        Of each turn, from first weights that are the same for everybody.
    rounds : int
        Turns of everybody that count.
    say : callable
        Told what is going on.

    Returns
    -------
    list of dict
        Of each contestant: the bound of the test rows after the last turn; by the clock and of the processors the
        seconds of every turn, their percentiles, and the median as a multiple of fastvae's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    processor: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    bounds = {}
    for turn in range(rounds + 1):
        for name, train in CONTESTANTS.items():
            torch.manual_seed(turn)
            module = Module()
            time.sleep(_PAUSE)
            start, busy = time.perf_counter(), time.process_time()
            train(module, x, n_epochs)
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - busy)
            bounds[name] = _bound(module, x_test)
            say(f"turn {turn} of {rounds}: {name}: {seconds[name][-1]:.3f} s, test bound {bounds[name]:.2f} nats")
    rows: list[dict[str, Any]] = [{"name": name, "elbo_test": bounds[name]} for name in CONTESTANTS]
    for clock, turns in (("seconds", seconds), ("processor_seconds", processor)):
        medians = {name: float(np.median(turns[name][1:])) for name in CONTESTANTS}
        for row in rows:
            counted = turns[row["name"]][1:]
            percentiles = np.percentile(counted, (20, 50, 80)).tolist()
            row[clock] = dict(zip(("p20", "p50", "p80"), percentiles, strict=True)) | {"turns": counted}
            row[clock]["times_fastvae"] = medians[row["name"]] / medians["fastvae"]
    return rows


@click.command()
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Epochs of a turn.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns that count.")
@click.option("--threads", type=click.IntRange(1), default=backends.default_threads(), help="Of everybody.")
@out_option(".json", default=None)
def main(epochs: int, rounds: int, threads: int, out: Path | None) -> None:
    """Measure how much sooner PyTorch's module is trained by fastvae."""
    try:
        halves = load("mnist")
    except DataError as error:
        raise click.ClickException(str(error)) from error
    assert halves.test is not None  # MNIST has its own test set
    torch.set_num_threads(threads)
    load_before = os.getloadavg()
    results = measure(halves.train.as_seen(), halves.test.as_seen(), n_epochs=epochs, rounds=rounds, say=click.echo)
    for row in results:
        for clock in ("seconds", "processor_seconds"):
            median, ratio = row[clock]["p50"], row[clock]["times_fastvae"]
            click.echo(f"{row['name']:<24} {clock:<18} {median:8.3f}  {ratio:.2f} x fastvae's")
    document = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": machine(),
        "text": "784-400-20-400-784, relu, minibatches of 128, Adam 1e-3, float32, MNIST's 60000 training rows",
        "threads": threads,
        "epochs": epochs,
        "rounds": rounds,
        "load": {"before": load_before, "after": os.getloadavg()},
        "results": results,
    }
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
