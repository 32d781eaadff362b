"""The network of a variational auto-encoder: its dimensions, its flat parameter buffer and its initial values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae import rng
from fastvae.arguments import choice, integer, positive, real

__all__ = ["ACTIVATIONS", "LIKELIHOODS", "MEANS", "Dense", "Network", "ParameterLayout", "check_init", "initialise"]

ACTIVATIONS = ("tanh", "relu", "softplus", "sigmoid")
LIKELIHOODS = ("bernoulli", "gaussian")
MEANS = ("sigmoid", "identity")
MAX_WIDTH = 2**24


@dataclass(frozen=True)
class Network:
    """Dimensions and functions of the encoder q(z|x) and the decoder p(x|z).

    Both are fully connected, as in appendix C of the paper, with any number of hidden layers (none makes them
    affine). The encoder's last layer gives ``[mu | logvar]`` of a diagonal Gaussian; the decoder's gives Bernoulli
    logits, or ``[mean | raw logvar]`` of a diagonal Gaussian.

    Parameters
    ----------
    data_dim, latent_dim : int
        D and J, at least 1.
    encoder_hidden, decoder_hidden : tuple of int
        Widths of the hidden layers, from input to output.
    activation : {"tanh", "relu", "softplus", "sigmoid"}
        Function of every hidden layer.
    likelihood : {"bernoulli", "gaussian"}
        p(x|z).
    mean : {"sigmoid", "identity"}
        Function of the Gaussian mean head; the paper's is the sigmoid. Unused by ``bernoulli``.
    logvar_floor : float
        Lowest log variance of the Gaussian likelihood: ``logvar = floor + softplus(raw - floor)``. Without a floor
        the likelihood has no maximum (Mattei & Frellsen 2018). Unused by ``bernoulli``.

    Raises
    ------
    ValueError
        A dimension below 1 or above 2^24, an unknown name, or a floor outside [-80, 20].
    """

    data_dim: int
    latent_dim: int
    encoder_hidden: tuple[int, ...] = (500,)
    decoder_hidden: tuple[int, ...] = (500,)
    activation: str = "tanh"
    likelihood: str = "bernoulli"
    mean: str = "sigmoid"
    logvar_floor: float = -10.0

    def __post_init__(self) -> None:
        for name in ("data_dim", "latent_dim"):
            object.__setattr__(self, name, integer(name, getattr(self, name), low=1, high=MAX_WIDTH))
        for side in ("encoder_hidden", "decoder_hidden"):
            widths = enumerate(getattr(self, side))
            checked = tuple(integer(f"{side}[{i}]", width, low=1, high=MAX_WIDTH) for i, width in widths)
            object.__setattr__(self, side, checked)
        for name, known in (("activation", ACTIVATIONS), ("likelihood", LIKELIHOODS), ("mean", MEANS)):
            choice(name, getattr(self, name), known)
        object.__setattr__(self, "logvar_floor", real("logvar_floor", self.logvar_floor))
        if not -80 <= self.logvar_floor <= 20:
            raise ValueError(f"logvar_floor must lie in [-80, 20], got {self.logvar_floor!r}")

    @property
    def decoder_heads(self) -> tuple[str, ...]:
        """Names of the decoder's output heads, each of width D."""
        return ("logits",) if self.likelihood == "bernoulli" else ("mean", "logvar")

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Widths of the encoder from x to ``[mu | logvar]``."""
        return (self.data_dim, *self.encoder_hidden, 2 * self.latent_dim)

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Widths of the decoder from z to its heads."""
        return (self.latent_dim, *self.decoder_hidden, len(self.decoder_heads) * self.data_dim)

    @cached_property
    def layout(self) -> ParameterLayout:
        """Where each parameter lies in the flat buffer."""
        return ParameterLayout(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Network:
        """Build a network from `to_dict`'s fields."""
        return cls(**fields)


@dataclass(frozen=True)
class Dense:
    """One affine layer ``y = x @ W + b`` in the flat buffer: W is (fan_in, fan_out) row-major, b follows it.

    A layer with several heads holds them side by side in the columns of W.

    Attributes
    ----------
    names : tuple of str
        One for each head.
    fan_in, fan_out : int
        Columns of x and y.
    offset : int
        Where W begins.
    """

    names: tuple[str, ...]
    fan_in: int
    fan_out: int
    offset: int

    @property
    def bias_offset(self) -> int:
        """Offset of b."""
        return self.offset + self.fan_in * self.fan_out

    @property
    def end(self) -> int:
        """Offset one past the layer."""
        return self.bias_offset + self.fan_out

    def weight(self, flat: NDArray[Any]) -> NDArray[Any]:
        """View of W, shape (fan_in, fan_out)."""
        return flat[self.offset : self.bias_offset].reshape(self.fan_in, self.fan_out)

    def bias(self, flat: NDArray[Any]) -> NDArray[Any]:
        """View of b, shape (fan_out,)."""
        return flat[self.bias_offset : self.end]


class ParameterLayout:
    """Offsets of every layer in one flat buffer: the encoder from x to z, then the decoder from z to x.

    Attributes
    ----------
    encoder, decoder : tuple of Dense
        The layers in forward order.
    size : int
        Number of parameters.
    """

    def __init__(self, network: Network) -> None:
        self.encoder = self._chain("encoder", network.encoder_dims, ("mu", "logvar"), 0)
        self.decoder = self._chain("decoder", network.decoder_dims, network.decoder_heads, self.encoder[-1].end)
        self.size = self.decoder[-1].end

    @staticmethod
    def _chain(side: str, dims: tuple[int, ...], heads: tuple[str, ...], offset: int) -> tuple[Dense, ...]:
        layers = []
        for i, (fan_in, fan_out) in enumerate(pairwise(dims)):
            names = heads if i == len(dims) - 2 else (str(i),)
            layers.append(Dense(tuple(f"{side}.{name}" for name in names), fan_in, fan_out, offset))
            offset = layers[-1].end
        return tuple(layers)

    @property
    def layers(self) -> tuple[Dense, ...]:
        """Every layer, encoder first."""
        return self.encoder + self.decoder

    def views(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Name every parameter of a flat buffer.

        Parameters
        ----------
        flat : ndarray of shape (size,)

        Returns
        -------
        dict of str to ndarray
            ``encoder.0.W`` of shape (D, H), ``encoder.0.b``, ..., ``encoder.mu.W``, ``encoder.logvar.W``,
            ``decoder.0.W``, ... All are views: writing to them writes to `flat`.
        """
        if flat.shape != (self.size,):
            raise ValueError(f"expected a flat buffer of shape ({self.size},), got {flat.shape}")
        views = {}
        for layer in self.layers:
            weights = np.hsplit(layer.weight(flat), len(layer.names))
            biases = np.split(layer.bias(flat), len(layer.names))
            for name, weight, bias in zip(layer.names, weights, biases, strict=True):
                views[f"{name}.W"], views[f"{name}.b"] = weight, bias
        return views


def check_init(init: Any) -> str | float:
    """Return `initialise`'s argument `init`, or raise ValueError."""
    try:
        return init if isinstance(init, str) and init == "fan_in" else positive("init", init)
    except ValueError:
        raise ValueError(f"init must be 'fan_in' or a positive standard deviation, got {init!r}") from None


def initialise(network: Network, *, seed: int, init: str | float = "fan_in") -> NDArray[np.float32]:
    """Draw initial parameters: normal weights, zero biases.

    Parameters
    ----------
    network : Network
    seed : int
        Key of the noise.
    init : {"fan_in"} or float
        Standard deviation of the weights. ``"fan_in"`` is 1/sqrt(fan_in) per layer. The paper's N(0, 0.01), read as
        a variance, is 0.1.

    Returns
    -------
    ndarray of shape (network.layout.size,), float32

    Raises
    ------
    ValueError
        `init` is neither.
    """
    init = check_init(init)
    params = np.zeros(network.layout.size, np.float32)
    for index, layer in enumerate(network.layout.layers):
        sd = layer.fan_in**-0.5 if init == "fan_in" else float(init)
        weight = layer.weight(params)
        weight[:] = sd * rng.normal(seed=seed, step=index, stream=rng.Stream.INIT, shape=weight.shape)
    return params
