"""Numbers that a graph computes from nothing (positions, frequencies, slopes of heads), turned into buffers.

    arange - div - sin  ->  get_attr

What a buffer holds can be cut with the channels that it meets, what is computed on the way cannot.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.frontends.calls import COMPUTED

LARGEST = 1 << 16
"""Elements of a number that is held: masks of long sequences stay computed."""


def hold_constants(graph: fx.GraphModule) -> None:
    """Do so in `graph` itself, where what is computed is not the same everywhere."""
    values = _computed(graph)
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if not (outside and _is_worth(value)):
            continue
        names = (f"{COMPUTED}{node.name}{f'_{k}' if k else ''}" for k in itertools.count())
        name = next(name for name in names if not hasattr(graph, name))
        graph.register_buffer(name, value.clone())
        with graph.graph.inserting_before(node):
            held = graph.graph.get_attr(name)
        for user in outside:
            user.replace_input_with(node, held)
    for node in reversed(list(values)):
        if not node.users:
            graph.graph.erase_node(node)


def _computed(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """Nodes that read no input, parameter or buffer, and always give the same, with what they give."""
    interpreter = fx.Interpreter(graph)
    interpreter.env = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            known = node.op == "call_function" and all(used in interpreter.env for used in node.all_input_nodes)
            if known and not _is_arbitrary(node):
                interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env


def _is_arbitrary(node: fx.Node) -> bool:
    """Random numbers, what has side effects, and memory as it was found."""
    return node.is_impure() or "empty" in getattr(node.target, "__name__", "")


def _is_worth(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not 1 < value.numel() <= LARGEST:
        return False
    return not bool((value == value.flatten()[0]).all())
