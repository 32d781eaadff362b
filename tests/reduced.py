"""The truth of the modes of reduced precision: the reference in float64, operands of every matrix product rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.reference import ReferencePlan
from fastvae.network import Dense, Network

# Significant bits, and whether a tie goes to the even neighbour (bfloat16) or away from zero (tf32)
FORMATS = {"bf16": (8, True), "tf32": (11, False)}


def rounded(value: Array, precision: str) -> Array:
    """Round to a format's significant bits; the exponent's range is not reached in these tests."""
    bits, to_even = FORMATS[precision]
    fraction, exponent = np.frexp(np.asarray(value, np.float64))
    scaled = np.ldexp(fraction, bits)
    whole = np.rint(scaled) if to_even else np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
    return np.ldexp(whole, exponent - bits)


class RoundedReference(ReferencePlan):
    """Operations on rounded operands, with exact sums."""

    def __init__(self, network: Network, *, operands: str, **sizes: Any) -> None:
        super().__init__(network, **sizes)
        self.operands = operands

    def _rounded(self, value: Array) -> Array:
        return rounded(value, self.operands)

    def _forward(self, layers: tuple[Dense, ...], params: Array, x: Array, hidden: tuple[Array, ...]) -> Array:
        for layer, h in zip(layers, hidden, strict=False):
            h[:] = self._rounded(
                self.activation(self._rounded(x) @ self._rounded(layer.weight(params)) + layer.bias(params))
            )
            x = h
        y: Array = self._rounded(x) @ self._rounded(layers[-1].weight(params)) + layers[-1].bias(params)
        return y

    def _backward(self, layers: Any, params: Array, x: Array, hidden: Any, dout: Array, grad: Array | None) -> Array:
        inputs, dout = [self._rounded(value) for value in (x, *hidden)], self._rounded(dout)
        for i in reversed(range(len(layers))):
            if grad is not None:
                layers[i].weight(grad)[:] += inputs[i].T @ dout
                layers[i].bias(grad)[:] += dout.sum(0)
            if i:
                dout = self._rounded(
                    dout @ self._rounded(layers[i].weight(params)).T * self.activation_slope(inputs[i])
                )
        return dout

    def decoder_backward(self, *, params: Array, dz: Array | None, **arguments: Any) -> None:
        super().decoder_backward(params=params, dz=dz, **arguments)
        if dz is not None:  # once more, with the rounded weights of the lowest layer
            first = self.network.layout.decoder[0]
            lowest = params.copy()
            first.weight(lowest)[:] = self._rounded(first.weight(params))
            super().decoder_backward(params=lowest, dz=dz, **(arguments | {"grad": None}))


@dataclass(frozen=True)
class ReducedEngine:
    """The truth of one precision."""

    operands: str

    def plan(self, network: Network, **sizes: Any) -> RoundedReference:
        """Return a plan in float64."""
        return RoundedReference(network, operands=self.operands, **sizes)
