"""Elements picked by a list that the network holds (a fixed permutation of channels), all spelled as `x[:, list]`.

So spelled, the list can be rewritten for fewer channels as a range can (`fx_ranges`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.frontends.calls import bind

_aten = torch.ops.aten


def spell_indices(graph: fx.GraphModule) -> None:
    """Do so in `graph`."""
    for node in graph.graph.nodes:
        found = _index(node, graph) if node.op in ("call_function", "call_method") else None
        if found is None:
            continue
        source, items = found
        if all(item in (slice(None), Ellipsis) or _is_list(graph, item) for item in items):
            node.op, node.target, node.args, node.kwargs = "call_function", operator.getitem, (source, items), {}


def _index(node: fx.Node, graph: fx.GraphModule) -> tuple[Any, tuple[Any, ...]] | None:
    """What it picks from, and what stands in the brackets then; None: it picks nothing."""
    given: Any = node.args
    if node.target is _aten.index.Tensor:
        return given[0], tuple(slice(None) if item is None else item for item in given[1])
    if node.target not in ("index_select", torch.index_select, _aten.index_select.default):
        return None
    call = bind(node, graph)
    dim, index = call.get("dim"), call.get("index")
    if not isinstance(dim, int):
        return None
    items = (*(slice(None),) * dim, index) if dim >= 0 else (..., index, *(slice(None),) * (-dim - 1))
    return call.get("input"), items


def _is_list(graph: fx.GraphModule, item: Any) -> bool:
    if not isinstance(item, fx.Node) or item.op != "get_attr":
        return False
    held = operator.attrgetter(str(item.target))(graph)
    return isinstance(held, Tensor) and held.ndim == 1 and not held.is_floating_point() and held.dtype != torch.bool
