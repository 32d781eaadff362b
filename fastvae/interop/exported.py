"""A fitted model's weights for other programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvae import __version__, settings
from fastvae.arguments import choice
from fastvae.files import make_folder, replace_file
from fastvae.interop.arrays import nest, write_arrays
from fastvae.interop.layouts import LAYOUTS, to_layout
from fastvae.optional import require

if TYPE_CHECKING:
    from fastvae.kernels import Array
    from fastvae.model import Model

__all__ = ["export", "state_dict", "to_onnx", "to_torch"]


def state_dict(model: Model, layout: str = "torch") -> dict[str, Any]:
    """Return copies of the parameters under the names of a layout, for a module of one's own.

    Parameters
    ----------
    layout : {"torch", "pytorch-examples", "flax", "fastvae"}
        See `from_torch`. ``module.load_state_dict(vae.state_dict("pytorch-examples"))`` fills a module in the manner of
        PyTorch's example.

    Returns
    -------
    dict
        Of torch tensors for the layouts of PyTorch, else of NumPy arrays; for ``"flax"`` nested, as
        ``module.apply({"params": ...}, x)`` takes it.

    Raises
    ------
    LayoutError
        The layout has no place for such a network.
    ImportError
        PyTorch is not installed.
    """
    arrays = _named(model, layout)
    if layout == "flax":
        return nest(arrays)
    if not LAYOUTS[layout].is_torch:
        return dict(arrays)
    torch = require("torch", extra="torch", for_what=f"layout {layout!r}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _named(model: Model, layout: str) -> dict[str, Array]:
    choice("layout", layout, LAYOUTS)
    settings.check_encodes(model)
    return to_layout(LAYOUTS[layout], model.network_, model.parameters_)


def _metadata(model: Model) -> dict[str, str]:
    """Return what arrays do not tell, as strings."""
    network = model.network_
    return {
        "fastvae": __version__,
        "activation": network.activation,
        "likelihood": network.likelihood,
        "mean": network.mean,
        "logvar_floor": json.dumps(network.logvar_floor),
        "scale": json.dumps(model.scale_),
        "integer": json.dumps(model.integer_data_),
        "image_shape": json.dumps(model.image_shape_),
        "seed": json.dumps(model.seed_),
    }


def export(model: Model, path: str | os.PathLike[str], *, layout: str = "fastvae") -> None:
    """Write the parameters to a file that needs nothing of fastvae to be read.

    Parameters
    ----------
    path : path-like
        ``*.safetensors``, whose metadata say activation, likelihood, mean, logvar_floor and scale too, or ``*.npz``.
    layout : {"fastvae", "torch", "pytorch-examples", "flax"}
        Whose names, see `from_torch`; ``"fastvae"`` has those of `parameters_`. Flax' are joined by slashes.

    Raises
    ------
    LayoutError
        The layout has no place for such a network, or the file has another ending.
    OSError
        The folder is missing, full or not writable.
    """
    named = _named(model, layout)
    separator = LAYOUTS[layout].separator
    arrays = {name.replace(".", separator): array for name, array in named.items()}
    write_arrays(Path(path), arrays, _metadata(model))


def to_torch(model: Model) -> Any:
    """Return a `torch.nn.Module` with copies of the weights and equal outputs, to be trained on or built into others.

    It takes rows as the model sees data, ``X * scale_``, and gives reconstructions of these; its attribute ``scale``
    has the factor. See `fastvae.interop.torch_module.TorchVAE`.

    Returns
    -------
    TorchVAE
        On the CPU, in training mode. ``encode(x)`` gives mu and logvar, ``decode(z)`` the mean of p(x|z), a call the
        reconstruction at a z drawn from q(z|x) with mu and logvar, ``elbo(x)`` the bound in nats per datapoint,
        ``loss(x)`` minus its mean.

    Raises
    ------
    ValueError
        The algorithm trains no q(z|x) to draw from.
    ImportError
        PyTorch is not installed.
    """
    settings.check_has_bound(model)
    tensors = state_dict(model, "torch")
    from fastvae.interop.torch_module import TorchVAE

    module = TorchVAE(model.network_, scale=model.scale_).to(tensors["encoder.mu.weight"].dtype)
    module.load_state_dict(tensors)
    return module


def to_onnx(model: Model, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the model as two ONNX graphs of float32, the noise between them left to whoever runs them.

    ``encoder.onnx`` makes ``mu`` and ``logvar`` of ``x``, ``decoder.onnx`` makes ``x``, the mean of p(x|z), of ``z``;
    for the Gaussian likelihood ``logvar_x`` too. The number of rows is free. Rows are as the model sees data,
    ``X * scale_``; the graphs' metadata have version, scale, likelihood and the rest.

    Parameters
    ----------
    folder : path-like
        Made if missing.

    Returns
    -------
    encoder, decoder : Path

    Raises
    ------
    OSError
        The folder cannot be made, is full or not writable.
    ValueError
        A graph would be larger than ONNX allows, or the model has no recognition model.
    ImportError
        onnx is not installed.
    """
    parameters = _named(model, "fastvae")
    require("onnx", extra="onnx", for_what="to_onnx")
    from fastvae.interop.onnx_graphs import decoder_graph, encoder_graph

    contents = [build(model.network_, parameters, _metadata(model)) for build in (encoder_graph, decoder_graph)]
    folder = Path(folder)
    make_folder(folder)
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    for path, content in zip(paths, contents, strict=True):
        with replace_file(path) as stream:
            stream.write(content)
    return paths
