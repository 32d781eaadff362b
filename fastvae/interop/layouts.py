"""The names under which programs keep the weights of a variational auto-encoder, and the way between them and ours.

A layer is y = x W + b. W has the shape (in, out) here and in Flax, (out, in) in PyTorch. Names are joined by dots in
this module; a layout's own separator comes back where files are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fastvae.errors import LayoutError
from fastvae.kernels import Array
from fastvae.network import LIKELIHOODS, Network

__all__ = ["LAYOUTS", "Layout", "from_layout", "to_layout"]

_PYTORCH_EXAMPLES = {
    "encoder.0": "fc1",
    "encoder.mu": "fc21",
    "encoder.logvar": "fc22",
    "decoder.0": "fc3",
    "decoder.logits": "fc4",
}
_FLAX_HEADS = {"mu": "_mean", "logvar": "_logvar", "logits": "", "mean": "_mean"}


@dataclass(frozen=True)
class Layout:
    """How one program names and stores the parameters.

    Attributes
    ----------
    name, text : str
        What it is called, and its names in words, for errors.
    weight, bias : str
        Last part of a parameter's name.
    layer : callable
        Name of a layer in it, given ours (``encoder.0``, ``encoder.mu``, ...) and the number of hidden layers of that
        side; KeyError where it has none.
    activation : str
        What models of this layout have between their layers, unless told otherwise.
    is_torch : bool
        Whether the weights are PyTorch's, stored transposed.
    separator : str
        Between the parts of a name in files.
    n_hidden : int, optional
        Hidden layers that both sides must have; by default any number.
    """

    name: str
    text: str
    weight: str
    bias: str
    layer: Callable[[str, int], str]
    activation: str
    is_torch: bool = False
    separator: str = "."
    n_hidden: int | None = None

    def names(self, network: Network) -> dict[str, str] | None:
        """Return this layout's name of each of our parameters; None if it has no place for such a network."""
        n_hidden = {"encoder": len(network.encoder_hidden), "decoder": len(network.decoder_hidden)}
        if self.n_hidden is not None and set(n_hidden.values()) != {self.n_hidden}:
            return None
        names = {}
        for ours in (name for dense in network.layout.layers for name in dense.names):
            try:
                theirs = self.layer(ours, n_hidden[ours.partition(".")[0]])
            except KeyError:
                return None
            names[f"{ours}.W"], names[f"{ours}.b"] = f"{theirs}.{self.weight}", f"{theirs}.{self.bias}"
        return names


def _same(layer: str, _: int) -> str:
    return layer


def _flax(layer: str, n_hidden: int) -> str:
    side, _, part = layer.partition(".")
    number, head = (int(part) + 1, "") if part.isdigit() else (n_hidden + 1, _FLAX_HEADS[part])
    return f"{side}.fc{number}{head}"


_ALL = (
    Layout(
        name="fastvae",
        text="encoder.0.W, encoder.0.b, ..., encoder.mu.W, encoder.logvar.W, decoder.0.W, ..., and decoder.logits.W or "
        "decoder.mean.W with decoder.logvar.W",
        weight="W",
        bias="b",
        layer=_same,
        activation="tanh",
    ),
    Layout(
        name="torch",
        text="the same with .weight and .bias",
        weight="weight",
        bias="bias",
        layer=_same,
        activation="tanh",
        is_torch=True,
    ),
    Layout(
        name="pytorch-examples",
        text="fc1, fc21, fc22, fc3, fc4 with .weight and .bias",
        weight="weight",
        bias="bias",
        layer=lambda layer, _: _PYTORCH_EXAMPLES[layer],
        activation="relu",
        is_torch=True,
        n_hidden=1,
    ),
    Layout(
        name="flax",
        text="encoder/fc1, encoder/fc2_mean, encoder/fc2_logvar, decoder/fc1, decoder/fc2 with /kernel and /bias, for "
        "n hidden layers up to fc<n+1>",
        weight="kernel",
        bias="bias",
        layer=_flax,
        activation="relu",
        separator="/",
    ),
)
LAYOUTS = {layout.name: layout for layout in _ALL}


def to_layout(layout: Layout, network: Network, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Name parameters as a layout does.

    Parameters
    ----------
    layout : Layout
    network : Network
    parameters : dict of str to ndarray
        By our names.

    Returns
    -------
    dict of str to ndarray
        C-contiguous copies, names joined by dots.

    Raises
    ------
    LayoutError
        The layout has no place for such a network.
    """
    names = layout.names(network)
    if names is None:
        general = [other.name for other in _ALL if other.n_hidden is None]
        raise LayoutError(
            f"layout {layout.name!r} holds {layout.text}, and not a {network.likelihood} network with hidden layers "
            f"{network.encoder_hidden} and {network.decoder_hidden}; use one of {', '.join(general)}"
        )
    arrays = {theirs: parameters[ours] for ours, theirs in names.items()}
    return {name: np.array(array.T if layout.is_torch else array, order="C") for name, array in arrays.items()}


def from_layout(arrays: Mapping[str, Array]) -> tuple[Layout, Network, dict[str, Array]]:
    """Recognise a layout by its names, and a network by the shapes.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Names joined by dots.

    Returns
    -------
    layout : Layout
    network : Network
        With the layout's activation, and all else that shapes do not tell at its default.
    parameters : dict of str to ndarray
        By our names, of our shapes.

    Raises
    ------
    LayoutError
        They are of no known layout, or their shapes do not fit together.
    """
    candidates = _candidates(arrays)
    for layout in _ALL:
        for candidate in candidates:
            names = layout.names(candidate)
            if names is None or set(names.values()) != arrays.keys():
                continue
            parameters = {ours: arrays[theirs] for ours, theirs in names.items()}
            if layout.is_torch:
                parameters = {name: array.T for name, array in parameters.items()}
            return layout, _network(layout, candidate, arrays, parameters), parameters
    known = "; ".join(f"{layout.name}: {layout.text}" for layout in _ALL)
    raise LayoutError(f"these are not the weights of a known layout: found {_described(arrays)}; expected {known}")


def _candidates(arrays: Mapping[str, Array]) -> list[Network]:
    """Return networks, of width 1, with as many layers as there can be by the number of names of each side."""
    layers = {side: sum(name.startswith(f"{side}.") for name in arrays) // 2 for side in ("encoder", "decoder")}
    candidates = [Network(1, 1, (1,), (1,))]
    for likelihood in LIKELIHOODS:
        n_encoder, n_decoder = layers["encoder"] - 2, layers["decoder"] - (1 if likelihood == "bernoulli" else 2)
        if n_encoder >= 0 and n_decoder >= 0:
            candidates.append(Network(1, 1, (1,) * n_encoder, (1,) * n_decoder, likelihood=likelihood))
    return candidates


def _network(
    layout: Layout, candidate: Network, arrays: Mapping[str, Array], parameters: Mapping[str, Array]
) -> Network:
    """Return the network whose parameters have these shapes."""
    wrong = [name for name, array in parameters.items() if array.ndim != (2 if name.endswith("W") else 1)]
    if not wrong and all(array.size for array in parameters.values()):

        def width(layer: str) -> int:
            return int(parameters[f"{layer}.W"].shape[1])

        network = Network(
            width(f"decoder.{candidate.decoder_heads[0]}"),
            width("encoder.mu"),
            tuple(width(f"encoder.{i}") for i in range(len(candidate.encoder_hidden))),
            tuple(width(f"decoder.{i}") for i in range(len(candidate.decoder_hidden))),
            activation=layout.activation,
            likelihood=candidate.likelihood,
        )
        shapes: dict[str, tuple[int, ...]] = {}
        for dense in network.layout.layers:
            fan_out = dense.fan_out // len(dense.names)
            for name in dense.names:
                shapes[f"{name}.W"], shapes[f"{name}.b"] = (dense.fan_in, fan_out), (fan_out,)
        if all(parameters[name].shape == shape for name, shape in shapes.items()):
            return network
    weights = "(out, in)" if layout.is_torch else "(in, out)"
    raise LayoutError(
        f"the shapes of layout {layout.name!r} do not fit together: found {_described(arrays)}; expected weights "
        f"{weights} and biases (out,), each layer's input as wide as the output of the one before, mu as wide as "
        "logvar, and x as wide as its reconstruction"
    )


def _described(arrays: Mapping[str, Array], most: int = 24) -> str:
    shown = [f"{name} {array.shape}" for name, array in arrays.items()]
    return ", ".join(shown[:most] + ([f"and {len(shown) - most} more"] if len(shown) > most else [])) or "nothing"
