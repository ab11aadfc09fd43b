"""Repeats along dimensions of size 1 as expansions, which may be as wide as what they meet (`Kind.SPREAD`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_REPEATS = ("repeat", _aten.repeat.default)
_UNSQUEEZE = ("unsqueeze", torch.unsqueeze, _aten.unsqueeze.default)


def expand_repeats(graph: fx.Graph) -> None:
    """Do so in `graph`, where all that is repeated is known to be of size 1."""
    for node in [node for node in graph.nodes if node.target in _REPEATS]:
        source, *counts = node.args
        if len(counts) == 1 and isinstance(counts[0], (tuple, list)):
            counts = list(counts[0])
        if not isinstance(source, fx.Node) or not counts:
            continue
        ones, repeated = _ones(source), [d for d, count in enumerate(counts, -len(counts)) if count != 1]
        if repeated and all(d in ones for d in repeated):
            sizes = [-1 if count == 1 else count for count in counts]
            node.op, node.target, node.args, node.kwargs = "call_function", _aten.expand.default, (source, sizes), {}


def _is_one(size: Any) -> bool:
    """Whether a size is 1, and no symbol that may be."""
    return isinstance(size, int) and size == 1


def _ones(source: fx.Node) -> set[int]:
    """Dimensions known to be of size 1, counted from the last."""
    known: Any = source.meta.get("val")
    if isinstance(known, Tensor):
        return {d - known.ndim for d, size in enumerate(known.shape) if _is_one(size)}
    if source.target in _UNSQUEEZE and len(source.args) == 2 and isinstance(source.args[1], int):
        return {source.args[1]} if source.args[1] < 0 else set()
    return set()
