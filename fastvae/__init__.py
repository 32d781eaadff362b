"""fastvae: variational auto-encoders trained by Auto-Encoding Variational Bayes on hand-fused kernels."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvae.network import Network
    from fastvae.optimizer import Optimizer
    from fastvae.vae import VAE

    __version__: str

__all__ = ["VAE", "Network", "Optimizer", "__version__"]

if sys.platform == "win32":
    raise ImportError("fastvae runs on Linux and macOS; on Windows, install it within the Windows Subsystem for Linux")
if find_spec("fastvae.kernels") is None:
    raise ImportError(
        f"{__path__[0]} is fastvae's source folder, not an installed fastvae: run Python from another folder, "
        "or install the folder above it with `pip install -e .`"
    )

# Loaded on first use, so that `import fastvae` stays light.
_LAZY = {"VAE": "fastvae.vae", "Network": "fastvae.network", "Optimizer": "fastvae.optimizer"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastvae")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fastvae' has no attribute {name!r}")
