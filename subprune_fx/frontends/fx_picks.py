"""An index that is spelled out for every row that it picks from has as many rows as that, whatever these lose.

index.expand(samples x heads, ...)  ->  index.expand(rows.size(0), ...)   in   rows.gather(-1, index)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten


def size_by_rows(graph: fx.Graph) -> None:
    """Spell it so in `graph`, where sizes are known to be the same."""
    for node in [node for node in graph.nodes if node.target is _aten.gather.default]:
        rows, dim, index = node.args[:3]
        if not (isinstance(rows, fx.Node) and isinstance(index, fx.Node) and index.target is _aten.expand.default):
            continue
        sizes = list(_sizes(index.args[1]))
        known = [getattr(one.meta.get("val"), "shape", ()) for one in (rows, index)]
        if not sizes or not isinstance(dim, int) or not len(sizes) == len(known[0]) == len(known[1]):
            continue
        with graph.inserting_before(node):
            for d, size in enumerate(sizes):
                if d != dim % len(sizes) and isinstance(size, fx.Node) and str(known[0][d]) == str(known[1][d]):
                    sizes[d] = graph.call_function(_aten.sym_size.int, (rows, d))
            wide = graph.call_function(_aten.expand.default, (index.args[0], sizes))
        wide.meta = dict(index.meta)
        node.replace_input_with(index, wide)
        if not index.users:
            graph.erase_node(index)


def _sizes(spelled: Any) -> tuple[Any, ...]:
    return tuple(spelled) if isinstance(spelled, (tuple, list)) else ()
