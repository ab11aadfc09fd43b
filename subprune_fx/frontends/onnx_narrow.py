"""Expansions that an elementwise operator does itself are left out of an imported ONNX graph.

Exporters write the norm that a vector is divided by as large as the vector. As it is, a single number for all channels,
it is known for the statistic that it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.frontends.onnx_source import Source

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


def narrowed(
    module: fx.GraphModule, source: Source, records: Sequence[Mapping[fx.Node, Any]]
) -> dict[tuple[str, int], str]:
    """Let operators read what is expanded for them to the size of their other operand; in place.

    Args:
        module: From `onnx_graph.import_graph`.
        source: Where it came from.
        records: Values of its nodes, of several numbers of samples.

    Returns:
        By node name and operand, the tensor of the file that it now reads.
    """
    found: dict[tuple[str, int], str] = {}
    for node in module.graph.nodes:
        if not isinstance(node.target, OnnxOp) or node.target.op_type not in _BROADCASTING or len(node.args) != 2:
            continue
        for operand, (given, other) in enumerate((node.args, node.args[::-1])):
            tensor = _expanded(given, source)
            if tensor and all(_shape(record, given) == _shape(record, other) != () for record in records):
                found[node.name, operand] = tensor
                node.update_arg(operand, given.args[0])
                break
    return found


def _expanded(node: Any, source: Source) -> str:
    """The tensor of the file that a node expands; empty: it does not, or it is a constant."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, OnnxOp) or node.target.op_type != "Expand":
        return ""
    held = node.args[0]
    return source.tensor(held.name) if isinstance(held, fx.Node) and held.op != "get_attr" else ""


def _shape(record: Mapping[fx.Node, Any], node: Any) -> tuple[int, ...]:
    """Of a node's value; none where it has no dimensions or is no tensor."""
    value = record.get(node) if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()
