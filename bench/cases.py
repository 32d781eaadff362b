"""Benchmark cases: a network, its minibatch and its data, with the arithmetic one training step has to do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvae.data import Dataset, as_dataset, load
from fastvae.errors import DataError
from fastvae.kernels import Array
from fastvae.network import Network
from fastvae.optimizer import Optimizer

__all__ = ["CASES", "Case", "grey_levels"]


@dataclass(frozen=True)
class Case:
    """One training configuration."""

    name: str
    network: Network
    batch_size: int
    optimizer: Optimizer

    @property
    def flops(self) -> int:
        """Multiplications and additions of the dense matrix products of one step.

        Every layer has three products of 2 M K N (forward, weight gradient, input gradient), but for the encoder's
        first, which needs no input gradient.
        """
        layers = self.network.layout.layers
        products = 3 * sum(layer.fan_in * layer.fan_out for layer in layers) - layers[0].fan_in * layers[0].fan_out
        return 2 * self.batch_size * products

    def data(self) -> tuple[Dataset, str]:
        """Return the real data where FASTVAE_DATA has it, else made-up grey levels; and which it is."""
        try:
            return load("mnist").train, "mnist"
        except DataError:
            return as_dataset(grey_levels(60000, self.network.data_dim), scale=1 / 255), "synthetic"


def grey_levels(n_rows: int, data_dim: int, seed: int = 0) -> Array:
    """Make uint8 rows of which 19 % are not zero, as MNIST's are."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(1, 256, (n_rows, data_dim), dtype=np.uint8)
    return levels * (generator.random((n_rows, data_dim), dtype=np.float32) < 0.19)


CASES = {"mnist": Case("mnist", Network(784, 20), 100, Optimizer("adagrad", learning_rate=0.02))}
