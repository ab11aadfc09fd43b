"""Weights of three dimensions and more (of every head, say) as the matrices that they are.

einsum("btc,chd->bthd", x, W)  ->  linear(x, W as (h d, c)), unflattened
einsum("bthd,chd->btc", x, W)  ->  linear(x flattened, W as (c, h d))
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from subprune_fx.frontends.fx_einsum import EINSUM, equation_of


def flatten_weights(graph: fx.GraphModule) -> None:
    """Do so in `graph` itself, for einsums of an activation and a parameter without a common dimension that stays."""
    for node in [node for node in graph.graph.nodes if node.target in EINSUM]:
        equation, factors = equation_of(node)
        given, arrow, out = equation.partition("->")
        parts = given.split(",")
        if len(parts) != 2 or len(factors) != 2 or not arrow or "." in equation:
            continue
        for weight, letters, x, read in zip(factors, parts, reversed(factors), reversed(parts), strict=True):
            if _is_weight(letters, read, out) and (value := _parameter(weight, graph)) is not None:
                sizes = dict(zip(letters, value.shape, strict=True))
                node.replace_all_uses_with(_linear(node, (x, read), (weight, letters), out, sizes))
                graph.graph.erase_node(node)
                break


def _is_weight(letters: str, read: str, out: str) -> bool:
    """Whether each dimension of a factor is summed over or made, there are both, and all others stay."""
    summed, made = set(letters) & set(read), set(letters) & set(out)
    apart = all(len(set(part)) == len(part) for part in (letters, read, out))
    whole = summed | made == set(letters) and not summed & made and set(read) - summed == set(out) - made
    return apart and whole and len(letters) > 2 and bool(summed) and bool(made)


def _parameter(node: Any, graph: fx.GraphModule) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(graph)
    return value if isinstance(value, nn.Parameter) else None


def _linear(
    node: fx.Node, data: tuple[fx.Node, str], weight: tuple[fx.Node, str], out: str, sizes: dict[str, int]
) -> fx.Node:
    graph, (x, read), (matrix, letters) = node.graph, data, weight
    summed = [letter for letter in letters if letter in read]
    made = [letter for letter in letters if letter in out]
    rest = [letter for letter in read if letter not in summed]
    with graph.inserting_before(node):
        x = _permuted(x, read, [*rest, *summed])
        if len(summed) > 1:
            x = graph.call_function(torch.flatten, (x, len(rest)))
        flat = [math.prod(sizes[letter] for letter in part) for part in (made, summed)]
        matrix = graph.call_function(torch.reshape, (_permuted(matrix, letters, [*made, *summed]), flat))
        y = graph.call_function(nn.functional.linear, (x, matrix))
        if len(made) > 1:
            y = graph.call_function(torch.unflatten, (y, -1, [sizes[letter] for letter in made]))
        return _permuted(y, "".join([*rest, *made]), list(out))


def _permuted(node: fx.Node, old: str, new: list[str]) -> fx.Node:
    order = [old.index(letter) for letter in new]
    return node if order == list(range(len(order))) else node.graph.call_function(torch.permute, (node, order))
