"""fastvae: variational auto-encoders trained by Auto-Encoding Variational Bayes on hand-fused kernels."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvae.network import Network
    from fastvae.optimizer import Optimizer
    from fastvae.vae import VAE

__all__ = ["VAE", "Network", "Optimizer", "__version__"]

__version__ = version("fastvae")

# Loaded on first use, so that `import fastvae` stays light.
_LAZY = {"VAE": "fastvae.vae", "Network": "fastvae.network", "Optimizer": "fastvae.optimizer"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fastvae' has no attribute {name!r}")
