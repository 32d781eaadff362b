"""One training step whose products are cuBLAS's, for minibatches and layers that keep the device busy.

Every product but those of the narrow sample is large there, and the passes between them (``passes.cu``) touch each row
once. Products run over whole padded rows, see there. Hidden layers are made block by block of rows, so that what a
product leaves is still in the cache when the pass behind it takes it up, and the next block overwrites it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastvae.kernels.cuda import passes
from fastvae.kernels.cuda.dense import Layer, leading
from fastvae.kernels.cuda.latent import dream_backward, dream_forward, latent_backward, latent_forward
from fastvae.kernels.cuda.launch import NOWHERE, Launch, Matrix, Product, Work
from fastvae.kernels.cuda.likelihood import statistics
from fastvae.kernels.cuda.step import Dreams, Step
from fastvae.kernels.cuda.workspace import Memory, Workspace
from fastvae.network import Network

__all__ = ["CublasStep", "Operands"]

# Of one block's result in float32: a third of an H100's cache of 50 MB, and of 4096 columns enough rows for a tile of
# 128 x 256 on nearly every multiprocessor. Not yet measured.
_RESULT_BYTES = 16 * 2**20
_FEWEST_ROWS = 128  # of a block but the last


def _block_rows(columns: int) -> int:
    """Return how many rows of so many columns are made at once."""
    rows = _RESULT_BYTES // (4 * leading(columns))
    return max(rows // _FEWEST_ROWS, 1) * _FEWEST_ROWS


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First row, and number of rows, of each block."""
    size = _block_rows(columns)
    return ((first, min(size, rows - first)) for first in range(0, rows, size))


@dataclass(frozen=True)
class _Side:
    """Of encoder or decoder: every layer's input, copy of W, and gradient of y, as the products read them."""

    layers: Sequence[Layer]
    inputs: Sequence[Matrix]
    w: Sequence[Matrix]
    dy: Sequence[Matrix]


class Operands:
    """The operands of every product: what the workspace has in float32, as the products read it.

    Attributes
    ----------
    encoder, decoder : _Side
    """

    def __init__(self, network: Network, memory: Memory, work: Workspace, draws: int, precision: str) -> None:
        self._memory, self._itemsize = memory, 2 if precision == "bf16" else 4
        self.encoder = self._side(work.encoder, work.rows)
        self.decoder = self._side(work.decoder, work.rows * draws)
        sides = ((work.encoder, work.rows), (work.decoder, work.rows * draws))
        of_rows = (
            min(rows, _block_rows(layer.fan_out)) * leading(layer.fan_out)
            for layers, rows in sides
            for layer in layers[:-1]
        )
        of_weights = (leading(layer.fan_in + 1) * leading(layer.fan_out) for layer in network.layout.layers)
        self._result = memory.floats(max(*of_rows, *of_weights))

    def _side(self, layers: Sequence[Layer], rows: int) -> _Side:
        return _Side(
            layers,
            [self._matrix(rows, layer.fan_in + 1) for layer in layers],
            [self._matrix(leading(layer.fan_in), layer.fan_out) for layer in layers],
            [self._matrix(rows, layer.fan_out) for layer in layers],
        )

    def _matrix(self, rows: int, columns: int) -> Matrix:
        ld = leading(columns)
        return Matrix(self._memory.bytes(self._itemsize * rows * ld), ld)

    def result(self, columns: int) -> Matrix:
        """Where a product's result goes that the next launch takes up."""
        return Matrix(self._result, leading(columns))

    def rows_from(self, m: Matrix, first: int) -> Matrix:
        """Return the rows of an operand from `first` on."""
        return Matrix(m.p + self._itemsize * first * m.ld, m.ld)

    def load(self) -> Iterator[Launch]:
        """Copy W of every layer."""
        for side in (self.encoder, self.decoder):
            for layer, w in zip(side.layers, side.w, strict=True):
                yield passes.store_rows(layer.w, w, layer.fan_in, layer.fan_out)


@dataclass(frozen=True)
class CublasStep(Step):
    """The step of `Step`, up to the order of sums; `operands.load` goes before the first one."""

    operands: Operands

    def launches(self) -> Iterator[Work]:
        """Gather, encode, sample, decode, compare; back again; and update: in the order of `Step`."""
        work, encoder, decoder = self.work, self.operands.encoder, self.operands.decoder
        rows, all_rows, latent_dim = self.rows, self.draws * self.rows, self.network.latent_dim

        if self.dreams:
            yield from self._dream(self.dreams)
        yield self._gather()
        yield passes.store_rows(work.x, encoder.inputs[0], rows, self.network.data_dim, one=True)
        yield from self._chain(encoder, rows)
        yield passes.bias_rows(work.encoder[-1], rows)
        yield latent_forward(self._sample)
        yield passes.store_rows(work.z, decoder.inputs[0], all_rows, latent_dim, one=True)
        yield from self._chain(decoder, all_rows)
        places: dict[str, Any] = {"x": work.x, "x_rows": rows, "log_px": self.terms, "loop": self.tables.loop}
        if self.importance:  # compared twice, so that dout is weighed before it is rounded
            yield passes.compare_rows(self.network, work.decoder[-1], rows=all_rows, dout=NOWHERE, **places)
            yield self._weigh(self.importance, parts=1, dout=NOWHERE)
            places["weights"] = self.importance.weights
        yield passes.compare_rows(self.network, work.decoder[-1], rows=all_rows, dout=decoder.dy[-1], **places)

        yield statistics(self._statistics(all_rows))
        yield from self._back(decoder, all_rows)
        if self.dreams:
            yield passes.store_rows(self.dreams.x, encoder.inputs[0], rows, self.network.data_dim, one=True)
            yield from self._chain(encoder, rows)
            yield passes.bias_rows(work.encoder[-1], rows)
            yield dream_backward(self._dream_of(self.dreams))
        else:
            yield self._input_gradient(decoder.layers[0], decoder.dy[0], decoder.w[0], work.dz, all_rows)
            yield latent_backward(self._sample)
        yield passes.store_rows(work.encoder[-1].dy, encoder.dy[-1], rows, 2 * latent_dim)
        yield from self._back(encoder, rows)
        yield from self._update()

    def _dream(self, dreams: Dreams) -> Iterator[Work]:
        decoder = self.operands.decoder
        yield dream_forward(self._dream_of(dreams))
        yield passes.store_rows(dreams.z, decoder.inputs[0], self.rows, self.network.latent_dim, one=True)
        yield from self._chain(decoder, self.rows)
        yield passes.bias_rows(self.work.decoder[-1], self.rows)
        yield self._dreamt(dreams)

    @property
    def _hidden(self) -> dict[str, Any]:
        return {"activation": self.network.activation, "loop": self.tables.loop}

    def _chain(self, side: _Side, rows: int) -> Iterator[Work]:
        """Hidden layers with their activation; then the heads, still without their bias."""
        for i, (layer, x, w) in enumerate(zip(side.layers, side.inputs, side.w, strict=True)):
            n, k = leading(layer.fan_out), leading(layer.fan_in)
            if i + 1 == len(side.layers):
                yield Product(x, w, layer.y, rows, n, k)
                return
            y, h = self.operands.result(layer.fan_out), side.inputs[i + 1]
            for first, count in _blocks(rows, layer.fan_out):
                x_rows, h_rows = (self.operands.rows_from(m, first) for m in (x, h))
                yield Product(x_rows, w, y, count, n, k)
                yield passes.store_rows(y, h_rows, count, layer.fan_out, layer=layer, one=True, **self._hidden)

    @staticmethod
    def _input_gradient(layer: Layer, dy: Matrix, w: Matrix, dx: Matrix, rows: int) -> Product:
        return Product(dy, w, dx, rows, leading(layer.fan_in), leading(layer.fan_out), transposed_b=True)

    def _back(self, side: _Side, rows: int) -> Iterator[Work]:
        """From the gradient of the last layer's y to that of every layer's."""
        for i in range(len(side.layers) - 1, 0, -1):
            layer, result = side.layers[i], self.operands.result(side.layers[i].fan_in)
            for first, count in _blocks(rows, layer.fan_in):
                dy, h, dh = (self.operands.rows_from(m, first) for m in (side.dy[i], side.inputs[i], side.dy[i - 1]))
                yield self._input_gradient(layer, dy, side.w[i], result, count)
                yield passes.slope_rows(result, h, dh, count, layer.fan_in, **self._hidden)

    def _update(self) -> Iterator[Work]:
        """Gradients of every layer's parameters, and the optimizer's step along each."""
        operands, slots = self.operands, zip(*self.slots, strict=True)
        for side, rows in ((operands.encoder, self.rows), (operands.decoder, self.draws * self.rows)):
            for layer, x, w, dy in zip(side.layers, side.inputs, side.w, side.dy, strict=True):
                g, (s0, s1) = operands.result(layer.fan_out), next(slots)
                yield Product(x, dy, g, leading(layer.fan_in + 1), leading(layer.fan_out), rows, transposed_a=True)
                state = (s0.p, s1.p if self.n_slots > 1 else 0)
                yield passes.update_layer(layer, g, state=state, copy=w, loop=self.tables.loop)
