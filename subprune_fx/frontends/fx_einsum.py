"""Products of three tensors and more (einsum) as products of two, from left to right, as torch itself computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

EINSUM = (torch.einsum, torch.ops.aten.einsum.default)


def pair_einsums(graph: fx.Graph) -> None:
    """Do so in `graph`, where the letters of the result are spelled out and there is no ellipsis."""
    for node in [node for node in graph.nodes if node.op == "call_function" and node.target in EINSUM]:
        equation, factors = equation_of(node)
        given, arrow, out = equation.partition("->")
        parts = given.split(",")
        if len(parts) < 3 or not arrow or "." in equation or len(parts) != len(factors):
            continue
        with graph.inserting_before(node):
            product, read = factors[0], parts[0]
            for number in range(1, len(parts)):
                later = set(out).union(*parts[number + 1 :])
                both = dict.fromkeys(read + parts[number])
                made = "".join(letter for letter in both if letter in later) if number < len(parts) - 1 else out
                operands = [product, factors[number]]
                product = graph.call_function(node.target, (f"{read},{parts[number]}->{made}", operands))
                read = made
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def equation_of(node: fx.Node) -> tuple[str, list[Any]]:
    """Equation, without spaces, and factors; an empty equation where it is not spelled as one."""
    equation, *rest = node.args
    factors = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if not isinstance(equation, str) or not all(isinstance(factor, fx.Node) for factor in factors):
        return "", []
    return equation.replace(" ", ""), factors
