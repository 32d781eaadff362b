"""Named arrays: out of what other libraries have them in, and in files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastvae.errors import LayoutError, one_line
from fastvae.files import replace_file
from fastvae.kernels import Array

__all__ = ["SUFFIXES", "flatten", "nest", "read_arrays", "write_arrays"]

SUFFIXES = (".safetensors", ".npz")


def flatten(weights: Any) -> dict[str, Array]:
    """Return the arrays of a mapping by name.

    Parameters
    ----------
    weights : mapping
        Of names to NumPy, JAX or torch arrays on any device, nested or not. Names may be joined by dots or slashes.
        What all names begin with (``params``, ``module``, ``_orig_mod``, ...) is left out.

    Returns
    -------
    dict of str to ndarray
        Of float64, which holds every narrower type exactly. Names are joined by dots.

    Raises
    ------
    LayoutError
        It is no mapping, or a value is no array of finite real numbers.
    """
    if not isinstance(weights, Mapping):
        raise LayoutError(f"expected a mapping of names to arrays, such as module.state_dict(), got {type(weights)}")
    arrays = {tuple(path): _to_numpy(".".join(path), value) for path, value in _leaves(weights, [])}
    while arrays and len({path[0] for path in arrays}) == 1 and all(len(path) > 1 for path in arrays):
        arrays = {path[1:]: array for path, array in arrays.items()}
    return {".".join(path): array for path, array in arrays.items()}


def _leaves(weights: Mapping[Any, Any], before: list[str]) -> Iterator[tuple[list[str], Any]]:
    for name, value in weights.items():
        path = before + str(name).replace("/", ".").split(".")
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _to_numpy(name: str, value: Any) -> Array:
    try:
        if hasattr(value, "detach"):  # a torch tensor: maybe of bfloat16, which NumPy does not have, or on a GPU
            value = value.detach().cpu()
            value = (value.double() if value.is_floating_point() else value).numpy()
        array: Array = np.asarray(value).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError, RuntimeError) as error:
        raise LayoutError(f"{name} is no array of real numbers ({one_line(error)})") from error
    if not np.isfinite(array).all():
        raise LayoutError(f"{name} has values that are not finite; take weights from before the training diverged")
    return array


def nest(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return arrays by dotted name as nested dicts."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = array
    return tree


def write_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write arrays to a .safetensors file, with metadata, or to a .npz file, which has no place for them.

    Raises
    ------
    LayoutError
        `path` has another ending.
    OSError
        The folder is missing, full or not writable.
    """
    if path.suffix not in SUFFIXES:
        raise LayoutError(f"{path} must end in {' or '.join(SUFFIXES)}")
    with replace_file(path) as stream:
        if path.suffix == ".npz":
            named: dict[str, Any] = dict(arrays)
            np.savez(stream, allow_pickle=False, **named)
        else:
            from safetensors.numpy import save

            stream.write(save(dict(arrays), dict(metadata)))


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return what `write_arrays` or any other library wrote: arrays by name, and the metadata of a .safetensors file.

    Raises
    ------
    LayoutError
        It is no such file, or damaged.
    OSError
        It is missing or not readable.
    """
    if path.is_dir():
        raise LayoutError(f"{path} is a folder; a run or checkpoint of fastvae needs no import, else name the file")
    if path.suffix not in SUFFIXES:
        raise LayoutError(
            f"{path} is neither {' nor '.join(SUFFIXES)}; fastvae reads no pickle, which can run any code: make a "
            "safetensors file where you trust it, with `from safetensors.torch import save_file; "
            f'save_file(torch.load("{path.name}", weights_only=True), "{path.stem}.safetensors")`'
        )
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream:
                if not zipfile.is_zipfile(stream):
                    raise ValueError("it is no archive of arrays")
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as content:
                    return dict(content), {}
        return _read_safetensors(path.read_bytes())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each format has errors of its own, and the .npy header is parsed as Python source
        raise LayoutError(f"{path} cannot be read as {path.suffix} ({one_line(error)}); write it anew") from error


def _read_safetensors(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    from safetensors.numpy import load

    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return arrays, header.get("__metadata__", {})
