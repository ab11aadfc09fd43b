"""Squeezes that do not say which dimensions: those of size 1 here, whatever becomes of the others.

x.squeeze()  ->  x.squeeze((2, 3))

A single channel that is left, or a single sample, is not squeezed with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from subprune_fx.frontends.fx_shapes import Shapes

_aten = torch.ops.aten
_SQUEEZES = ("squeeze", torch.squeeze, _aten.squeeze.default)


def spell_squeezes(graph: fx.Graph, shape: Shapes) -> None:
    """Spell them so in `graph`, where sizes are known."""
    for node in [node for node in graph.nodes if node.target in _SQUEEZES]:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        sizes = shape(source) if isinstance(source, fx.Node) else None
        if sizes is None:
            continue
        ones: list[Any] = [d for d, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        if node.target is _aten.squeeze.default:
            node.target = _aten.squeeze.dims
        node.args = (source, ones)
        if not ones:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
