"""Device memory of one network: what lies between the operations, and the launches that run along its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastvae.kernels.cuda import dense
from fastvae.kernels.cuda.dense import Layer
from fastvae.kernels.cuda.launch import Buffer, Device, Launch, Matrix
from fastvae.network import Dense, Network

__all__ = ["Memory", "Workspace", "aligned", "backward", "forward", "inputs", "pack"]

_ALIGNMENT = 256


def aligned(size: int) -> int:
    """Round bytes up, so that whatever follows is aligned too."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Memory:
    """Zeroed device memory, kept as long as this object."""

    def __init__(self, device: Device) -> None:
        self._device, self._kept, self.size = device, list[Buffer](), 0

    def bytes(self, size: int) -> int:
        """Allocate and return the address."""
        size = aligned(max(size, 1))
        try:
            self._kept.append(self._device.zeros(size))
        except MemoryError as error:
            raise MemoryError(f"{error}, beside {self.size / 2**20:.0f} MB that this plan holds") from None
        self.size += size
        return self._kept[-1].address

    def floats(self, count: int) -> int:
        """Allocate floats."""
        return self.bytes(4 * count)

    def matrix(self, rows: int, columns: int) -> Matrix:
        """Allocate rows of padded leading dimension."""
        ld = dense.leading(columns)
        return Matrix(self.floats(rows * ld), ld)


class Workspace:
    """The arrays between the operations, for M rows and L draws.

    Attributes
    ----------
    rows : int
        M.
    encoder, decoder : tuple of Layer
        With the packed parameters, and the activations y and their gradients dy. The last layer's y are the heads.
    x, z, dz : Matrix
    eps, kl : int
        Addresses of floats: [L][M][J], (M,) or, sampled, [L][M]; of `sample_rows` each with its J terms.
    """

    def __init__(self, network: Network, memory: Memory, rows: int, draws: int) -> None:
        self._memory, self.rows = memory, rows
        all_rows = rows * draws
        self.x = memory.matrix(rows, network.data_dim)
        self.z, self.dz = (memory.matrix(all_rows, network.latent_dim) for _ in range(2))
        self.eps = memory.floats(all_rows * network.latent_dim)
        self.kl = memory.floats(all_rows * network.latent_dim)
        self.encoder = tuple(self._layer(layer, rows) for layer in network.layout.encoder)
        self.decoder = tuple(self._layer(layer, all_rows) for layer in network.layout.decoder)

    def _layer(self, layer: Dense, rows: int) -> Layer:
        y, dy = (self._memory.matrix(rows, layer.fan_out) for _ in range(2))
        w = self._memory.matrix(layer.fan_in + 1, layer.fan_out)
        return Layer(layer.fan_in, layer.fan_out, layer.offset, w, y, dy)


def forward(layers: Sequence[Layer], x: Matrix, rows: int, *, activation: str, precision: str) -> Iterator[Launch]:
    """Hidden layers with their activation, then the heads without."""
    for layer in layers[:-1]:
        yield dense.forward(layer, x, rows, activation=activation, precision=precision)
        x = layer.y
    yield dense.forward(layers[-1], x, rows, activation="none", precision=precision)


def backward(layers: Sequence[Layer], rows: int, *, activation: str, precision: str, loop: int = 0) -> Iterator[Launch]:
    """From the gradient of the last layer's y to that of every layer's."""
    for below, layer in reversed(list(pairwise(layers))):
        yield dense.input_gradient(
            layer, below.dy, rows, h=below.y, activation=activation, precision=precision, loop=loop
        )


def inputs(layers: Sequence[Layer], x: Matrix) -> list[Matrix]:
    """Each layer's input."""
    return [x, *(layer.y for layer in layers[:-1])]


def pack(layers: Sequence[Layer], flat: int, places: Sequence[Matrix], *, store: bool = False) -> Iterator[Launch]:
    """Copy a flat buffer of parameters or of state to the layers' `places`; with `store` back."""
    for layer, place in zip(layers, places, strict=True):
        canonical = Matrix(flat + 4 * layer.offset, layer.fan_out)
        source, to = (place, canonical) if store else (canonical, place)
        yield dense.copy_rows(source, to, layer.fan_in + 1, layer.fan_out)
