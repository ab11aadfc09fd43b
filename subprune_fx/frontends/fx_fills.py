"""Constants of one value and a size that a graph spells out, as single numbers that are expanded to that size.

What is expanded may be as wide as what it meets (`Kind.SPREAD`): the zeros that a recurrent state begins with, or that
pad a shortcut, lose the channels that the others lose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
_FILLS: dict[Any, int] = {
    **dict.fromkeys((torch.zeros, torch.ones, torch.full), 0),
    **dict.fromkeys((_aten.zeros.default, _aten.ones.default, _aten.full.default), 0),
    **dict.fromkeys((_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default), 1),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full"), 1),
}
"""By op, the place of its sizes among its arguments."""


def expand_fills(graph: fx.Graph) -> None:
    """Do so in `graph`, except for single numbers."""
    for node in list(graph.nodes):
        place = _FILLS.get(node.target) if node.op in ("call_function", "call_method") else None
        if place is None or "out" in node.kwargs:
            continue
        sizes, rest = _sizes(node, place)
        if not sizes:
            continue
        node.args = (*node.args[:place], (), *rest)
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "size"}
        for user in list(node.users):  # to each its own: what it meets here need not be what it meets there
            with graph.inserting_after(node):
                wide = graph.call_function(_aten.expand.default, (node, list(sizes)))
            user.replace_input_with(node, wide)


def _sizes(node: fx.Node, place: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The sizes, and the arguments after them; no sizes where they are not spelled out."""
    if "size" in node.kwargs:
        given: Any = node.kwargs["size"]
        rest: Any = node.args[place:]
    elif len(node.args) > place and isinstance(node.args[place], (tuple, list)):
        given, rest = node.args[place], node.args[place + 1 :]
    else:  # torch.zeros(2, 3)
        given, rest = node.args[place:], ()
    spelled = isinstance(given, (tuple, list)) and all(isinstance(size, (int, fx.Node)) for size in given)
    return (tuple(given) if spelled else ()), tuple(rest)
