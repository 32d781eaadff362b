"""Benchmark cases: a network, its minibatch and its data, with the arithmetic and the traffic of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastvae.bench.data import load_rows
from fastvae.data import Dataset
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["CASES", "Case"]

# Times that a layer's product of 2 M K N is made in one step: forward; and when training, weight gradient and, but for
# the encoder's first layer, input gradient.
_PRODUCTS = {"train": 3, "encode": 1, "elbo": 1}

_ADAGRAD = Optimizer("adagrad", learning_rate=0.02)


@dataclass(frozen=True)
class Case:
    """One configuration.

    Parameters
    ----------
    name, text : str
        `text` says in words what a step is.
    network : Network
    batch_size : int
        M, the rows of one step. A step of ``encode`` and ``elbo`` is one pass over all rows.
    steps : int
        Steps between two readings of the clock: about half a second of ours, as training calls an engine.
    kind : {"train", "encode", "elbo"}
        A training step; q(z|x) of every row; the bound of every row with one draw.
    optimizer : Optimizer
        Unused unless training.
    source : str
        As in `fastvae.bench.data.load_rows`.
    n_rows : int
        Rows to make up where there are no real ones.
    """

    name: str
    text: str
    network: Network
    batch_size: int
    steps: int
    kind: str = "train"
    optimizer: Optimizer = _ADAGRAD
    source: str = "mnist"
    n_rows: int = 60000

    def load(self) -> Dataset:
        """Return the rows."""
        return load_rows(self.source, self.network.data_dim, self.n_rows)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the dense matrix products of one step."""
        layout, times = self.network.layout, _PRODUCTS[self.kind]
        layers = layout.encoder if self.kind == "encode" else layout.layers
        products = times * sum(layer.fan_in * layer.fan_out for layer in layers)
        if self.kind == "train":
            products -= layers[0].fan_in * layers[0].fan_out
        return 2 * self.batch_size * products

    def n_bytes(self, data: Dataset) -> int:
        """Bytes that one step has to move, were every array in memory and moved as often as it must be.

        Training: parameters and optimizer state read and written once, the minibatch read as it is stored, and the
        output of every layer written and read again by backprop. Otherwise: parameters and rows read, results written.
        """
        layout, rows = self.network.layout, self.batch_size
        stored: Any = data.rows
        if data.is_sparse:
            per_row = stored.nnz / stored.shape[0] * (stored.data.itemsize + stored.indices.itemsize)
        else:
            per_row = data.data_dim * stored.itemsize
        minibatch = int(rows * per_row)
        if self.kind == "train":
            outputs = sum(layer.fan_out for layer in layout.layers)
            return 2 * 4 * (1 + self.optimizer.n_slots) * layout.size + minibatch + 2 * 4 * rows * outputs
        if self.kind == "encode":
            return 4 * layout.encoder[-1].end + minibatch + 4 * rows * 2 * self.network.latent_dim
        return 4 * layout.size + minibatch + 4 * rows

    def phase_flops(self, phase: str) -> int | None:
        """Dense FLOPs of a phase that is a product through one layer, such as ``decoder_backward.1``; else None."""
        operation, _, number = phase.partition(".")
        side, _, what = operation.partition("_")
        if side not in ("encoder", "decoder") or what not in ("forward", "backward", "weights") or not number:
            return None
        layer = getattr(self.network.layout, side)[int(number)]
        return int(2 * self.batch_size * layer.fan_in * layer.fan_out)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Case:
        """Build a case from `to_dict`'s fields."""
        network, optimizer = Network.from_dict(fields["network"]), Optimizer.from_dict(fields["optimizer"])
        return cls(**{**fields, "network": network, "optimizer": optimizer})


_PAPER = Network(784, 20)
_FREYFACE = Network(560, 10, (200,), (200,), likelihood="gaussian")
_DEEP = Network(784, 20, (512,) * 3, (512,) * 3, activation="relu")
_WIDE = Network(20000, 200, (600,), (600,))

CASES = {
    case.name: case
    for case in (
        Case("mnist", "The paper's MNIST step: 784-500-20-500-784, tanh, Bernoulli, Adagrad", _PAPER, 100, 300),
        Case("mnist-1000", "The paper's MNIST network on minibatches of 1000", _PAPER, 1000, 30),
        Case(
            "freyface",
            "The paper's Frey Face step: 560-200-10-200-2x560, tanh, Gaussian with sigmoid mean, Adagrad",
            _FREYFACE,
            100,
            500,
            source="freyface",
            n_rows=1572,
        ),
        Case("deep", "Three relu layers of 512 on both sides, 20 latent dimensions, Adagrad", _DEEP, 256, 40),
        Case(
            "wide-sparse",
            "20000 columns, 1 % nonzero (uint8 CSR), 600 hidden, 200 latent dimensions, Adagrad",
            _WIDE,
            100,
            20,
            source="sparse",
            n_rows=10000,
        ),
        Case(
            "encode",
            "q(z|x) of all MNIST test rows with the paper's network; a step is one pass",
            _PAPER,
            10000,
            5,
            kind="encode",
            source="mnist test",
            n_rows=10000,
        ),
        Case(
            "elbo",
            "Bound of all MNIST test rows with one draw, the paper's network; a step is one pass",
            _PAPER,
            10000,
            2,
            kind="elbo",
            source="mnist test",
            n_rows=10000,
        ),
    )
}
