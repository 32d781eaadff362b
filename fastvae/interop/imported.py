"""Weights that another program trained, as a fitted model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastvae import settings
from fastvae.arguments import check_image_shape, choice
from fastvae.errors import LayoutError
from fastvae.interop.arrays import flatten, read_arrays
from fastvae.interop.layouts import from_layout
from fastvae.network import LIKELIHOODS, Network
from fastvae.training.start import begin

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["from_file", "from_torch"]

M = TypeVar("M", bound="Model")


def from_torch(
    kind: type[M],
    state_dict: Any,
    *,
    activation: str | None = None,
    likelihood: str | None = None,
    mean: str | None = None,
    logvar_floor: float | None = None,
    scale: float | None = None,
    image_shape: tuple[int, int] | None = None,
    **params: Any,
) -> M:
    """Make a fitted model of weights that PyTorch or Flax trained.

    Their names tell the layout, their shapes the network:

    - ``pytorch-examples``: ``fc1``, ``fc21``, ``fc22``, ``fc3``, ``fc4``, each ``.weight`` and ``.bias``;
    - ``flax``: ``encoder/fc1``, ``encoder/fc2_mean``, ``encoder/fc2_logvar``, ``decoder/fc1``, ``decoder/fc2``, each
      ``/kernel`` and ``/bias``; further hidden layers count on, and a Gaussian decoder ends in ``_mean``, ``_logvar``;
    - ``torch``, of `to_torch`, and ``fastvae``, of `parameters_`.

    The model has taken no step. `resume` goes on for `n_epochs` epochs from these weights, `partial_fit` for one pass;
    `fit` would start from fresh ones.

    Parameters
    ----------
    kind : type
        `fastvae.VAE`, whose class method this is, or the class that it shares with the command line.
    state_dict : mapping, or torch.nn.Module
        Names to torch, NumPy or JAX arrays, nested or joined by dots or slashes.
    activation : {"tanh", "relu", "softplus", "sigmoid"}, optional
        By default the layout's: relu for ``pytorch-examples`` and ``flax``, else tanh, or that of a module of
        `to_torch`.
    likelihood : {"bernoulli", "gaussian"}, optional
        Follows from the decoder's heads; another one is refused.
    mean, logvar_floor : optional
        Of a Gaussian likelihood, as for `VAE`.
    scale : float, optional
        Rows of bytes are seen times this; by default 1/255 where they have values above 1. Rows of floats are seen as
        they are.
    image_shape : tuple of int, optional
        (height, width) of each row, for pictures.
    **params
        Further parameters of the class, for training on.

    Returns
    -------
    VAE

    Raises
    ------
    LayoutError
        The names are of no known layout, the shapes do not fit together, or a value is not finite.
    ValueError
        A parameter is out of range, or `image_shape` does not have as many pixels as the network has dimensions.
    """
    known = _known_network(state_dict)
    weights = state_dict.state_dict() if hasattr(state_dict, "state_dict") else state_dict
    layout, network, parameters = from_layout(flatten(weights))
    if likelihood is not None and choice("likelihood", likelihood, LIKELIHOODS) != network.likelihood:
        raise LayoutError(
            f"layout {layout.name!r} with the decoder heads {', '.join(network.decoder_heads)} is of "
            f"likelihood={network.likelihood!r}, not {likelihood!r}"
        )
    if params.get("algorithm") == "mcem":
        raise ValueError("algorithm='mcem' keeps a Markov chain for every row of its data, which weights do not bring")
    fields = {"activation": activation, "mean": mean, "logvar_floor": logvar_floor}
    given = {name: value for name, value in fields.items() if value is not None}
    functions = known or network
    model = kind(
        latent_dim=network.latent_dim,
        hidden_dims=network.encoder_hidden,
        decoder_hidden_dims=network.decoder_hidden,
        likelihood=network.likelihood,
        scale=scale,
        **({name: getattr(functions, name) for name in fields} | given | params),
    )
    settings.check(model)
    model.seed_ = settings.seed(model.random_state)
    network = settings.network(model, network.data_dim)
    flat = np.empty(network.layout.size, settings.dtype(model))
    with np.errstate(over="ignore"):
        for name, view in network.layout.views(flat).items():
            view[...] = parameters[name]
            if not np.isfinite(view).all():
                raise LayoutError(
                    f"{name} has values beyond {flat.dtype}, the weights of precision={model.precision!r}"
                )
    begin(model, network, flat, n_rows=0)
    model.scale_, model.integer_data_ = (1.0, False) if scale is None else (float(scale), True)
    model.image_shape_ = None if image_shape is None else check_image_shape(image_shape, network.data_dim)
    model.fingerprint_, model.n_samples_seen_ = None, 0
    return model


def _known_network(module: Any) -> Network | None:
    """Return what a module of `to_torch` knows of itself, be it within others such as `DataParallel`."""
    modules = module.modules() if hasattr(module, "modules") else ()
    found = (getattr(each, "network", None) for each in modules)
    return next((network for network in found if isinstance(network, Network)), None)


def from_file(kind: type[M], path: str | os.PathLike[str], **options: Any) -> M:
    """Make a fitted model of the weights in a .safetensors or .npz file, of any layout that `from_torch` knows.

    Parameters
    ----------
    kind : type
        As for `from_torch`.
    path : path-like
    **options
        As for `from_torch`. What they leave open, a .safetensors file of `VAE.export` says.

    Returns
    -------
    VAE

    Raises
    ------
    LayoutError
        The file is no such file, damaged, or as in `from_torch`.
    ValueError
        As in `from_torch`.
    """
    arrays, metadata = read_arrays(Path(path))
    if metadata.get("format") == "fastvae":
        raise LayoutError(f"{path} is a checkpoint of fastvae and needs no import; use it as it is")
    if "fastvae" not in metadata:
        return from_torch(kind, arrays, **options)
    try:
        said: dict[str, Any] = {name: metadata[name] for name in ("activation", "likelihood", "mean")}
        said |= {name: json.loads(metadata[name]) for name in ("logvar_floor", "scale", "image_shape")}
        said["random_state"], is_integer = json.loads(metadata["seed"]), json.loads(metadata["integer"])
    except (KeyError, ValueError) as error:
        raise LayoutError(f"{path} has damaged metadata of fastvae ({error!r}); export it anew") from error
    if not is_integer and said["scale"] == 1:
        said["scale"] = None
    model = from_torch(kind, arrays, **(said | options))
    if "scale" not in options:
        model.integer_data_ = is_integer
    return model
