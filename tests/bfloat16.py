"""The truth of bf16 mode, an engine: the reference in float64, operands of every matrix product rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.reference import ReferencePlan
from fastvae.network import Dense, Network


def rounded(value: Array) -> Array:
    """Round to 8 significant bits, to nearest even; the exponent's range is not reached in these tests."""
    fraction, exponent = np.frexp(np.asarray(value, np.float64))
    return np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8)


class Bfloat16Reference(ReferencePlan):
    """Operations on bfloat16 operands, with exact sums."""

    def _forward(self, layers: tuple[Dense, ...], params: Array, x: Array, hidden: tuple[Array, ...]) -> Array:
        for layer, h in zip(layers, hidden, strict=False):
            h[:] = rounded(self.activation(rounded(x) @ rounded(layer.weight(params)) + layer.bias(params)))
            x = h
        y: Array = rounded(x) @ rounded(layers[-1].weight(params)) + layers[-1].bias(params)
        return y

    def _backward(self, layers: Any, params: Array, x: Array, hidden: Any, dout: Array, grad: Array | None) -> Array:
        inputs, dout = [rounded(value) for value in (x, *hidden)], rounded(dout)
        for i in reversed(range(len(layers))):
            if grad is not None:
                layers[i].weight(grad)[:] += inputs[i].T @ dout
                layers[i].bias(grad)[:] += dout.sum(0)
            if i:
                dout = rounded(dout @ rounded(layers[i].weight(params)).T * self.activation_slope(inputs[i]))
        return dout

    def decoder_backward(self, *, params: Array, dz: Array | None, **arguments: Any) -> None:
        super().decoder_backward(params=params, dz=dz, **arguments)
        if dz is not None:  # once more, with the rounded weights of the lowest layer
            first = self.network.layout.decoder[0]
            lowest = params.copy()
            first.weight(lowest)[:] = rounded(first.weight(params))
            super().decoder_backward(params=lowest, dz=dz, **(arguments | {"grad": None}))


def plan(network: Network, **sizes: Any) -> Bfloat16Reference:
    return Bfloat16Reference(network, **sizes)
