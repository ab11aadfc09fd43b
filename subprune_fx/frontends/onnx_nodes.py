"""Nodes of an ONNX graph: the operator and plain attributes of one, its outputs, and what its subgraphs read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from subprune_fx.frontends.onnx_inner import inner
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.frontends.onnx_plain import FLOAT_KINDS

_OBJECTS = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def operator_of(
    proto: onnx.NodeProto,
    imports: Iterable[onnx.OperatorSetIdProto],
    read: tuple[bool, ...],
    captured: tuple[str, ...] = (),
) -> tuple[OnnxOp, dict[str, Any]]:
    """A node's operator, and its plain attributes.

    Args:
        proto: The node.
        imports: The model's opsets.
        read: For each output, whether anything reads it.
        captured: Outer tensors that its subgraphs read.
    """
    opsets = {own_domain(entry.domain): entry.version for entry in imports}
    plain = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in proto.attribute if a.type not in _OBJECTS}
    if "to" in plain:
        plain["to"] = wide(int(plain["to"]))
    fixed = tuple(_as_float32(a).SerializeToString() for a in proto.attribute if a.type in _OBJECTS)
    domain = own_domain(proto.domain)
    return OnnxOp(proto.op_type, domain, opsets.get(domain, 1), read, fixed, captured), plain


def own_domain(domain: str) -> str:
    """A domain by one name: ONNX's own is empty."""
    return "" if domain == "ai.onnx" else domain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def wide(kind: int) -> int:
    """Half and double become float32."""
    return int(onnx.TensorProto.FLOAT) if kind in FLOAT_KINDS else kind


def _as_float32(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    if not attribute.HasField("t") or wide(attribute.t.data_type) == attribute.t.data_type:
        return attribute
    array = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
    return onnx.helper.make_attribute(attribute.name, onnx.numpy_helper.from_array(array, attribute.t.name))


def least_outputs(node: gs.Node, opset: int) -> int:
    """How many outputs a node must have: of one with any number, all that it has (parts, or what a body gives).

    So has a BatchNormalization that takes its statistics from the batch.
    """
    if node.attrs.get("training_mode"):
        return len(node.outputs)
    if node.domain or not onnx.defs.has(node.op, opset, ""):  # fused nodes are spelled with newer operators
        return 0
    schema = onnx.defs.get_schema(node.op, opset)
    several = bool(schema.outputs) and schema.outputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return len(node.outputs) if several else int(schema.min_output)


def captured_names(attribute: onnx.AttributeProto, known: set[str]) -> Iterator[str]:
    """Outer tensors that a graph attribute reads."""
    for graph in inner(attribute):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            yield from (name for name in node.input if name in known and name not in own)
            for held in node.attribute:
                yield from (name for name in captured_names(held, known) if name not in own)
            own.update(node.output)
        yield from (value.name for value in graph.output if value.name in known and value.name not in own)
