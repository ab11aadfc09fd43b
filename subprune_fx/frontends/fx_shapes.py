"""Shapes of a graph's values before it is analysed: as torch.export has noted them, or from one run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs, arguments, one_more

Shapes = Callable[[fx.Node], Sequence[Any] | None]
"""By node the sizes of its value, symbols among them; None where it is no tensor, or not known."""


def shapes(graph: fx.GraphModule, example: Inputs | None) -> Shapes:
    """Those of `graph` for several samples, so that no dimension of size 1 counts them.

    It runs when it is first asked for one that is not noted, if it takes several samples.
    """
    known: dict[fx.Node, Any] = {}
    left = [] if example is None else [one_more(example), example]

    def shape(node: fx.Node) -> Sequence[Any] | None:
        if isinstance(node.meta.get("val"), Tensor):
            return tuple(node.meta["val"].shape)
        while left:
            inputs = left.pop(0)
            with contextlib.suppress(Exception):  # a fixed batch size may show in any way
                if len(inputs) > 1:
                    _Values(graph, known).run(*_given(graph, inputs))
                    left.clear()
        return known.get(node)

    return shape


def _given(graph: fx.GraphModule, example: Inputs) -> Iterator[Tensor]:
    positional, named = arguments(example)
    holders = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    given: Mapping[str, Tensor] = {**dict(zip(holders, positional, strict=False)), **named}
    return (given[holder] for holder in holders)


class _Values(fx.Interpreter):
    """Notes the shape of every value."""

    def __init__(self, graph: fx.GraphModule, known: dict[fx.Node, Any]) -> None:
        super().__init__(graph)
        self.known = known

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            value = super().run_node(n)
        self.known[n] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value
