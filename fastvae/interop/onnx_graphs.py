"""The encoder and the decoder as ONNX graphs. onnx is imported on top: only `VAE.to_onnx` imports this module.

Operators of opset 17 in format version 8, which runtimes since 2022 read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastvae.kernels import Array
from fastvae.network import Network

__all__ = ["decoder_graph", "encoder_graph"]

_OPSET, _FORMAT = 17, 8
# Of one protobuf message, which a file is; the rest of a graph is small.
_MAX_BYTES = 2**31 - 2**20
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "softplus": "Softplus", "sigmoid": "Sigmoid"}


class _Graph:
    """Nodes in order, and the constants that they use."""

    def __init__(self, network: Network, parameters: Mapping[str, Array]) -> None:
        self.network, self.parameters = network, parameters
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array | float) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, np.float32, order="C"), name)
        return name

    def node(self, operator: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output))
        return output

    def layer(self, name: str, x: str, output: str) -> str:
        weight, bias = (self.constant(f"{name}.{part}", self.parameters[f"{name}.{part}"]) for part in "Wb")
        return self.node("Gemm", [x, weight, bias], output)

    def hidden(self, side: str, x: str, n_layers: int) -> str:
        for i in range(n_layers):
            x = self.node(
                _ACTIVATIONS[self.network.activation], [self.layer(f"{side}.{i}", x, f"a{i}")], f"{side}.h{i}"
            )
        return x

    def serialised(
        self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, str]
    ) -> bytes:
        """Return the checked model in the file's form; `inputs` and `outputs` have names and widths."""

        def values(widths: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n, width in widths.items()]

        n_bytes = sum(4 * math.prod(constant.dims) for constant in self.constants.values())
        if n_bytes > _MAX_BYTES:
            raise ValueError(f"the {name} has {n_bytes / 1e9:.1f} GB, and an ONNX file holds 2.1; take safetensors")
        graph = helper.make_graph(self.nodes, name, values(inputs), values(outputs), [*self.constants.values()])
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_FORMAT, producer_name="fastvae")
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def encoder_graph(network: Network, parameters: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the graph that makes ``mu`` and ``logvar``, (N, J), of ``x``, (N, D)."""
    graph = _Graph(network, parameters)
    h = graph.hidden("encoder", "x", len(network.encoder_hidden))
    outputs = {graph.layer(f"encoder.{head}", h, head): network.latent_dim for head in ("mu", "logvar")}
    return graph.serialised("encoder", {"x": network.data_dim}, outputs, metadata)


def decoder_graph(network: Network, parameters: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the graph that makes the mean ``x`` of p(x|z), and a Gaussian's ``logvar_x``, (N, D), of ``z``, (N, J)."""
    graph = _Graph(network, parameters)
    h = graph.hidden("decoder", "z", len(network.decoder_hidden))
    outputs = {"x": network.data_dim}
    mean = network.decoder_heads[0]
    if network.likelihood == "gaussian" and network.mean == "identity":
        graph.layer(f"decoder.{mean}", h, "x")
    else:
        graph.node("Sigmoid", [graph.layer(f"decoder.{mean}", h, "a")], "x")
    if network.likelihood == "gaussian":
        floor = graph.constant("logvar_floor", network.logvar_floor)
        above = graph.node("Sub", [graph.layer("decoder.logvar", h, "s"), floor], "above")
        graph.node("Add", [graph.node("Softplus", [above], "softplus"), floor], "logvar_x")
        outputs["logvar_x"] = network.data_dim
    return graph.serialised("decoder", {"z": network.latent_dim}, outputs, metadata)
