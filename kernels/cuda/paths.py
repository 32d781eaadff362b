"""Who makes the large products of a step: own kernels, fused with what is around them, or cuBLAS with passes between.

The choice depends on the network, the minibatch, the draws and the precision alone, so that a seed gives the same bits
wherever a run is continued.
"""

from __future__ import annotations

import os

from fastvae.errors import BackendError
from fastvae.network import Network

__all__ = ["CROSSOVER", "PATHS", "VARIABLE", "asked", "chosen", "described", "step_flops"]

PATHS = ("own", "cublas")
VARIABLE = "FASTVAE_CUDA_PRODUCTS"
# FLOPs of a step's products from which cuBLAS makes them. Not yet measured: docs/cuda.md has the reasoning.
CROSSOVER = {"fp32": 2e9, "tf32": 5e9, "bf16": 5e9}


def step_flops(network: Network, rows: int, draws: int) -> int:
    """Multiplications and additions of a step's products: the encoder's first layer has no input gradient.

    Of AEVB: the dream of wake-sleep, two forward passes of M rows, is not counted.
    """
    sides = ((network.layout.encoder, rows), (network.layout.decoder, draws * rows))
    products = sum(3 * m * layer.fan_in * layer.fan_out for layers, m in sides for layer in layers)
    first = network.layout.encoder[0]
    return 2 * (products - rows * first.fan_in * first.fan_out)


def chosen(products: str, network: Network, rows: int, draws: int, precision: str) -> str:
    """Return one of `PATHS` for minibatches of `rows` rows; `products` is one of them, or "auto"."""
    if products != "auto":
        return products
    return PATHS[step_flops(network, rows, draws) >= CROSSOVER[precision]]


def asked() -> str:
    """Return what the environment asks for: one of `PATHS`, or "auto" where it is silent.

    Raises
    ------
    BackendError
        It asks for something else.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in (*PATHS, "auto"):
        raise BackendError(f"{VARIABLE} is {value!r}: choose from auto, {', '.join(PATHS)}")
    return value


def described() -> str:
    """Say in a few words what is taken when."""
    if (value := asked()) != "auto":
        return f"{value}, as {VARIABLE} asks"
    limits = ", ".join(f"{limit / 1e9:g} ({precision})" for precision, limit in CROSSOVER.items())
    return f"own kernels; cublas from {limits} GFLOP a step"
