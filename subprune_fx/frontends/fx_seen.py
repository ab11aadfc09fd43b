"""What is known of the nodes of an fx graph that have been run: their values, labels, parameters and numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, fx

from subprune_fx.frontends.calls import Call
from subprune_fx.graph.step import Param, Tree, leaves


class Seen:
    """The nodes of a graph that a walk has come past.

    Attributes:
        root: The graph's module.
        values: Values of the nodes that are still to be read.
        trees: Labels of each node's value, or the parameter that it reads.
        constants: Values that depend on more than the shape of what they are computed from.
        varying: Nodes whose value depends on the number of samples.
    """

    def __init__(self, root: fx.GraphModule) -> None:
        self.root = root
        self.values: dict[fx.Node, Any] = {}
        self.trees: dict[fx.Node, Tree | Param] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.varying: set[fx.Node] = set()
        self._names = _first_names(root)

    def param(self, name: str, value: Tensor) -> Param:
        """Tied parameters go by the first of their names; what has none (a computed weight) by its own."""
        return Param(self._names.get(id(value), name), tuple(value.shape))

    def value(self, argument: Any) -> Any:
        """An argument of a call, nodes replaced by their values."""
        return fx.node.map_arg(argument, lambda n: self.values[n])

    def tensors(self, arguments: Any) -> list[fx.Node]:
        """Nodes in `arguments` that hold tensors, in order."""
        found: list[fx.Node] = []
        fx.node.map_arg(arguments, found.append)
        return [n for n in found if isinstance(self.trees[n], Param) or leaves(self.trees[n])]

    def operands(self, arguments: Any) -> list[Tree | Param]:
        """Labels or parameter of every tensor-valued node in `arguments`, in order."""
        return [self.trees[n] for n in self.tensors(arguments)]

    def is_number(self, node: fx.Node) -> bool:
        """Whether a node's value has no tensors."""
        return not isinstance(self.trees[node], Param) and not leaves(self.trees[node])

    def told(self, call: Call) -> Call:
        """A call with the numbers that the graph computes for it (`groups=x.shape[1]`)."""
        numbers = {
            name: self.value(value)
            for name, value in call.arguments.items()
            if not isinstance(value, fx.Node) or self.is_number(value)
        }
        return dataclasses.replace(call, arguments={**call.arguments, **numbers})

    def first_tensors(self, node: fx.Node) -> tuple[str | None, str | int]:
        """Which argument of a node holds its first tensors: ("args", position) or ("kwargs", name)."""
        places: list[tuple[str, str | int, Any]] = [
            *(("args", position, argument) for position, argument in enumerate(node.args)),
            *(("kwargs", name, argument) for name, argument in node.kwargs.items()),
        ]
        for where, key, argument in places:
            used: list[fx.Node] = []
            fx.node.map_arg(argument, used.append)
            if any(isinstance(self.trees[n], Param) or leaves(self.trees[n]) for n in used):
                return where, key
        return None, 0


def _first_names(graph_module: fx.GraphModule) -> dict[int, str]:
    """First qualified name of every parameter and buffer, by identity."""
    named = [*graph_module.named_buffers(), *graph_module.named_parameters()]
    return {id(tensor): name for name, tensor in named}
