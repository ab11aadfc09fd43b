"""Writing a changed size into an fx graph or a module."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.plan import Constant


def set_constant(module: nn.Module, constant: Constant) -> None:
    """Write one changed size into a module, or into a node of its graph.

    Raises:
        SubpruneError: If there is no such node.
    """
    if constant.owner == "module":
        value = tuple(constant.value) if isinstance(constant.value, list) else constant.value
        setattr(module.get_submodule(constant.name), str(constant.path[0]), value)
        return
    assert isinstance(module, fx.GraphModule)
    node = next((node for node in module.graph.nodes if node.name == constant.name), None)
    if node is None:
        raise SubpruneError(f"the graph has no node {constant.name}", remedy="apply the plan to its own network")
    edit_node(node, constant)


def edited_over(module: fx.GraphModule, copy: fx.GraphModule, constant: Constant) -> Constant:
    """What `constant` overwrites in `module`, ready to be written into its `copy`."""
    if constant.owner == "module":
        value = getattr(module.get_submodule(constant.name), str(constant.path[0]))
        return dataclasses.replace(constant, value=value)
    named = {node.name: node for node in copy.graph.nodes}
    node = next(node for node in module.graph.nodes if node.name == constant.name)
    tree: Any = {"args": node.args, "kwargs": node.kwargs}
    for step in constant.path:
        tree = tree[step]
    return dataclasses.replace(constant, value=fx.node.map_arg(tree, lambda n: named[n.name]))


def edit_node(node: fx.Node, constant: Constant) -> None:
    """Write a size into a node's arguments; an equal split that becomes unequal changes its overload too."""
    field, *path = constant.path
    setattr(node, str(field), edited(getattr(node, str(field)), path, constant.value))
    if node.target is torch.ops.aten.split.Tensor and isinstance(constant.value, list):
        node.target = torch.ops.aten.split_with_sizes.default


def edited(tree: Any, path: list[str | int], value: Any) -> Any:
    """`tree` with the item at `path` replaced; containers keep their types, `{"start": ..}` becomes a slice.

    >>> edited((1, [2, 3]), [1, 0], 9)
    (1, [9, 3])
    """
    if not path:
        return slice(*value.values()) if isinstance(value, dict) else value
    head, *rest = path
    if isinstance(tree, dict):
        return {**tree, str(head): edited(tree[str(head)], rest, value)}
    items = list(tree)
    items[int(head)] = edited(items[int(head)], rest, value)
    return tuple(items) if isinstance(tree, tuple) else items
