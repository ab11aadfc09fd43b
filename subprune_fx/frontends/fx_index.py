"""Elements picked by a list that the network holds (a fixed permutation of channels), all spelled as `x[:, list]`.

So spelled, the list can be rewritten for fewer channels as a range can (`fx_resize`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten


def spell_indices(graph: fx.GraphModule) -> None:
    """Do so in `graph`."""
    for node in graph.graph.nodes:
        found = _index(node) if node.op in ("call_function", "call_method") else None
        if found is None or not all(item == slice(None) or _is_list(graph, item) for item in found):
            continue
        node.op, node.target, node.kwargs = "call_function", operator.getitem, {}
        node.args = (node.args[0], found)


def _index(node: fx.Node) -> tuple[Any, ...] | None:
    """What stands in the brackets; None: the node picks nothing, or not by its positional arguments."""
    given: Any = node.args
    if node.target is _aten.index.Tensor:
        return tuple(slice(None) if item is None else item for item in given[1])
    if node.target in ("index_select", torch.index_select, _aten.index_select.default) and len(given) == 3:
        _, dim, index = given
        return (*(slice(None),) * dim, index) if isinstance(dim, int) and dim >= 0 else None
    return None


def _is_list(graph: fx.GraphModule, item: Any) -> bool:
    if not isinstance(item, fx.Node) or item.op != "get_attr":
        return False
    held = operator.attrgetter(str(item.target))(graph)
    return isinstance(held, Tensor) and held.ndim == 1 and not held.is_floating_point() and held.dtype != torch.bool
