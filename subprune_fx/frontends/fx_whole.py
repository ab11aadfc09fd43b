"""Functions that symbolic tracing does not look into (`torch.fx.wrap`): in its graph they are single nodes."""

from __future__ import annotations

from torch import fx

from subprune_fx.frontends.calls import bind, is_op
from subprune_fx.graph.kinds import Kind


def reads_apart(graph: fx.GraphModule) -> bool:
    """Whether such a function reads what a layer or a parameter has had a part in: it may do anything to channels."""
    touched: set[fx.Node] = set()
    for node in graph.graph.nodes:
        reads = any(used in touched for used in node.all_input_nodes)
        if reads and node.op == "call_function" and not is_op(node.target):
            return True
        if _brings_parameters(node, graph) or (reads and not _is_shape(node, graph)):
            touched.add(node)
    return False


def _brings_parameters(node: fx.Node, graph: fx.GraphModule) -> bool:
    if node.op != "call_module":
        return node.op == "get_attr"
    return any(True for _ in graph.get_submodule(str(node.target)).parameters())


def _is_shape(node: fx.Node, graph: fx.GraphModule) -> bool:
    row = bind(node, graph).row if node.op in ("call_function", "call_method", "call_module") else None
    return row is not None and row.kind is Kind.SHAPE
