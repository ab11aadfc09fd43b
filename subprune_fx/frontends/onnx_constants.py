"""Constants of an ONNX graph: which there are, what only hands one on, and which are no parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from subprune_fx.frontends.onnx_nodes import wide
from subprune_fx.frontends.onnx_plain import FLOATS, numbers

_STATISTICS = {"BatchNormalization": (3, 4), "Resize": (1, 2), "Upsample": (1,)}
"""Inputs that torch keeps as buffers or as numbers: statistics and scales, not parameters."""


def constants_of(graph: gs.Graph, model: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and value of every initializer and Constant node; those that only subgraphs read are none of `graph`."""
    tensors = graph.tensors()
    for proto in model.graph.initializer:
        if proto.name not in tensors:
            yield proto.name, onnx.numpy_helper.to_array(proto)
    for tensor in tensors.values():
        if isinstance(tensor, gs.Constant):
            yield tensor.name, np.asarray(tensor.values)
    for node in graph.nodes:
        if node.op == "Constant":
            yield node.outputs[0].name, _constant_value(node)


def _constant_value(node: gs.Node) -> NDArray[Any]:
    ((kind, value),) = node.attrs.items()
    if isinstance(value, gs.Constant):
        return np.asarray(value.values)
    return numbers(kind, value)


def as_imported(array: NDArray[Any]) -> NDArray[Any]:
    """Half and double precision as float32, everything else as it is."""
    return array.astype(np.float32) if array.dtype in FLOATS else array


def aliases(graph: gs.Graph, model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """What only hands a constant on.

    Identities, which torch's older exporter writes for constants that it found to be equal; and casts of floating-point
    numbers, which are all float32 here, as long as one reader is behind them: two may come to need different constants.
    """
    found: dict[str, str] = {}
    outputs = {tensor.name for tensor in graph.outputs}
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        if node.op not in ("Identity", "Cast") or node.outputs[0].name in outputs:
            continue
        name = found.get(node.inputs[0].name, node.inputs[0].name)
        alone = len(node.inputs[0].outputs) == len(node.outputs[0].outputs) == 1
        if name in constants and (node.op == "Identity" or (alone and _keeps(proto, constants[name]))):
            found[node.outputs[0].name] = name
    return found


def _keeps(cast: onnx.NodeProto, array: NDArray[Any]) -> bool:
    """Whether a cast leaves a constant what it is here."""
    to = next((a.i for a in cast.attribute if a.name == "to"), 0)
    return array.dtype in FLOATS and wide(to) == onnx.TensorProto.FLOAT


def statistics(graph: gs.Graph) -> set[str]:
    """Constants that torch keeps as buffers or as numbers."""
    return {
        node.inputs[position].name
        for node in graph.nodes
        for position in _STATISTICS.get(node.op, ())
        if position < len(node.inputs)
    }


def flat_biases(graph: gs.Graph) -> set[str]:
    """Gemm's C as a row (1, n) reads like a vector (n,)."""
    return {node.inputs[2].name for node in graph.nodes if node.op == "Gemm" and len(node.inputs) > 2}
