"""Einsums in an fx graph as products of two tensors; of one tensor as a sum and a transpose."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from subprune_fx.frontends.einsum import pairs, single

EINSUM = (torch.einsum, torch.ops.aten.einsum.default)


def pair_einsums(graph: fx.Graph) -> None:
    """Do so in `graph`, where the letters of the result are spelled out and there is no ellipsis."""
    for node in [node for node in graph.nodes if node.op == "call_function" and node.target in EINSUM]:
        equation, factors = equation_of(node)
        with graph.inserting_before(node):
            alone = len(factors) == 1
            found = _alone(graph, equation, *factors) if alone else _paired(graph, node.target, equation, factors)
        if found is not None:
            node.replace_all_uses_with(found)
            graph.erase_node(node)


def _alone(graph: fx.Graph, equation: str, found: fx.Node) -> fx.Node | None:
    """An einsum of one tensor as a sum and a transpose."""
    known = single(equation)
    if known is None:
        return None
    summed, order = known
    found = graph.call_function(torch.sum, (found, summed)) if summed else found
    return graph.call_function(torch.permute, (found, order))


def _paired(graph: fx.Graph, target: Any, equation: str, factors: list[Any]) -> fx.Node | None:
    """An einsum of three tensors and more as products of two."""
    products = pairs(equation)
    if not products or len(products) != len(factors) - 1:
        return None
    found: fx.Node = factors[0]
    for product, factor in zip(products, factors[1:], strict=True):
        found = graph.call_function(target, (product, [found, factor]))
    return found


def equation_of(node: fx.Node) -> tuple[str, list[Any]]:
    """Equation, without spaces, and factors; an empty equation where it is not spelled as one."""
    equation, *rest = node.args
    factors = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if not isinstance(equation, str) or not all(isinstance(factor, fx.Node) for factor in factors):
        return "", []
    return equation.replace(" ", ""), factors
