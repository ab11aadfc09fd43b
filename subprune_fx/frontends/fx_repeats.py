"""Repeats along dimensions of size 1 as expansions, which may be as wide as what they meet (`Kind.SPREAD`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from subprune_fx.frontends.fx_shapes import Shapes

_aten = torch.ops.aten
_REPEATS = ("repeat", _aten.repeat.default, "tile", torch.tile, _aten.tile.default)


def expand_repeats(graph: fx.Graph, shape: Shapes) -> None:
    """Do so in `graph`, where all that is repeated is known to be of size 1."""
    for node in [node for node in graph.nodes if node.target in _REPEATS]:
        source, *counts = node.args
        if len(counts) == 1 and isinstance(counts[0], (tuple, list)):
            counts = list(counts[0])
        if not isinstance(source, fx.Node) or not counts:
            continue
        known = shape(source) or ()
        counts = [*[1] * (len(known) - len(counts)), *counts]
        ones, repeated = _ones(known), [d for d, count in enumerate(counts, -len(counts)) if count != 1]
        if repeated and all(d in ones for d in repeated):
            new = len(counts) - len(known)
            sizes = [-1 if count == 1 and d >= new else count for d, count in enumerate(counts)]
            node.op, node.target, node.args, node.kwargs = "call_function", _aten.expand.default, (source, sizes), {}


def _ones(sizes: Sequence[Any]) -> set[int]:
    """Dimensions of size 1, and no symbol that may be, counted from the last."""
    return {d - len(sizes) for d, size in enumerate(sizes) if isinstance(size, int) and size == 1}
