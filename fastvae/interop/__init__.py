"""Exchange of weights with PyTorch, Flax, ONNX and safetensors.

`fastvae.VAE` has all but `from_file` as methods. torch and onnx are imported by the functions that need them.
"""

from fastvae.interop.exported import export, state_dict, to_onnx, to_torch
from fastvae.interop.imported import from_file, from_torch
from fastvae.interop.layouts import LAYOUTS

__all__ = ["LAYOUTS", "export", "from_file", "from_torch", "state_dict", "to_onnx", "to_torch"]
