"""Parts of an exported graph that torch.export sets apart (`with torch.no_grad()`, autocast switched off), put back.

A graph that is pruned is run without gradients and without autocast as it is: what is inside needs no mode of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_hop = torch.ops.higher_order
_APART: dict[Any, Callable[[fx.Node], int | None]] = {
    _hop.wrap_with_set_grad_enabled: lambda _: 1,
    _hop.wrap_with_autocast: lambda node: None if node.args[2] else 4,
}
"""By op, the place of its graph among its arguments; None: it has to stay apart."""


def inline(module: fx.GraphModule) -> None:
    """Do so in `module`, in parts of parts too."""
    while found := [node for node in module.graph.nodes if _place(node) is not None]:
        for node in found:
            _put_back(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _place(node: fx.Node) -> int | None:
    return _APART[node.target](node) if node.target in _APART else None


def _put_back(module: fx.GraphModule, node: fx.Node) -> None:
    place = _place(node)
    assert place is not None
    holder = node.args[place]
    assert isinstance(holder, fx.Node)
    owner = str(holder.target)
    inner = module.get_submodule(owner)
    assert isinstance(inner, fx.GraphModule)
    given = [part for part in inner.graph.nodes if part.op == "placeholder"]
    known: dict[fx.Node, Any] = dict(zip(given, node.args[place + 1 :], strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(inner.graph, known)
    for part, copied in known.items():
        if part.op == "get_attr":
            copied.target = f"{owner}.{part.target}"
    for user in list(node.users):  # each takes one of the results
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
