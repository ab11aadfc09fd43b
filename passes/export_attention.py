"""Attention of other than four dimensions in a captured program, laid out in four: the ONNX exporter takes no other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from subprune_fx.passes.export_ready import copied

aten = torch.ops.aten

ATTENTION = aten.scaled_dot_product_attention.default
RANK = 4


def laid_out(program: ExportedProgram) -> ExportedProgram:
    """The program; where one of its attentions has to be laid out, another, with a graph of its own."""
    if not any(_is_other(node) for node in program.graph.nodes):
        return program
    found = copied(program)
    for node in list(found.graph.nodes):
        if _is_other(node):
            _lay_out(node)
    found.graph_module.recompile()
    return found


def _is_other(node: fx.Node) -> bool:
    """Whether it is an attention that has samples and no heads, or heads in several dimensions, of known sizes."""
    if node.target is not ATTENTION or _value(node).ndim in (2, RANK):
        return False
    values = [_value(used) for used in (*node.all_input_nodes, node)]
    return all(isinstance(size, int) for value in values for size in value.shape[1:])


def _lay_out(node: fx.Node) -> None:
    """To (samples, heads, positions, channels): all before the heads are samples, and where none are, there is one."""
    named = node.kwargs.get("attn_mask")
    given = [used for used in (*node.args[:4], named) if isinstance(used, fx.Node)]
    query, out = given[0], _value(node)
    with node.graph.inserting_before(node):
        rank = _value(query).ndim
        sizes = [_size(query, axis) for axis in range(rank - 2)]
        laid = {
            used: _laid(_repeated(used, sizes) if rank > RANK and place > 2 else used, rank)
            for place, used in enumerate(given)
        }
    for operand, new in laid.items():
        node.replace_input_with(operand, new)
    with node.graph.inserting_after(node):
        back = _call(node.graph, aten.reshape.default, (node, [-1, *out.shape[1:]]), out)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.meta["val"] = out.reshape(-1, *_heads(out), *out.shape[-2:])


def _repeated(mask: fx.Node, sizes: list[Any]) -> fx.Node:
    """A mask for each of the samples, unless it is the same for all."""
    value = _value(mask)
    if value.ndim < RANK:
        return mask
    known = [size.meta["val"] if isinstance(size, fx.Node) else size for size in sizes]
    last = value.shape[-2:]
    return _call(mask.graph, aten.expand.default, (mask, [*sizes, *last]), value.expand(*known, *last))


def _laid(operand: fx.Node, rank: int) -> fx.Node:
    """An operand in four dimensions, but for a mask with fewer than the `rank` of the query: that broadcasts."""
    value = _value(operand)
    if value.ndim < min(rank, RANK):
        return operand
    into = [*_heads(value), *value.shape[-2:]]
    return _call(operand.graph, aten.reshape.default, (operand, [-1, *into]), value.reshape(-1, *into))


def _heads(value: Tensor) -> list[int]:
    return [int(value.shape[-3])] if value.ndim > RANK else [1]


def _size(node: fx.Node, axis: int) -> Any:
    size = _value(node).shape[axis]
    return size if isinstance(size, int) else _call(node.graph, aten.sym_size.int, (node, axis), size)


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = value
    return node


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
