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
        alone = single(equation) if len(factors) == 1 else None
        products = pairs(equation)
        if alone is None and (not products or len(products) != len(factors) - 1):
            continue
        with graph.inserting_before(node):
            product = factors[0]
            for step, factor in zip(products, factors[1:], strict=False):
                product = graph.call_function(node.target, (step, [product, factor]))
            if alone is not None:
                summed, order = alone
                product = graph.call_function(torch.sum, (product, summed)) if summed else product
                product = graph.call_function(torch.permute, (product, order))
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def equation_of(node: fx.Node) -> tuple[str, list[Any]]:
    """Equation, without spaces, and factors; an empty equation where it is not spelled as one."""
    equation, *rest = node.args
    factors = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if not isinstance(equation, str) or not all(isinstance(factor, fx.Node) for factor in factors):
        return "", []
    return equation.replace(" ", ""), factors
