"""Writing a changed size into an fx graph or a module."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.plan import Constant

# Torch's layers that hand their sizes on to the function of the same name.
_HOLDERS: dict[str, tuple[type[nn.Module], ...]] = {
    "normalized_shape": (nn.LayerNorm, nn.RMSNorm),
    "num_groups": (nn.GroupNorm,),
    "groups": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
}


def is_written(module: nn.Module, constant: Constant) -> bool:
    """Whether a size stands in the code of the forward of `module`, out of reach."""
    if constant.owner == "module" or isinstance(module, fx.GraphModule):
        return False
    layer, name, *_ = constant.attribute or ("", "")
    holder = dict(module.named_modules()).get(str(layer)) if layer else None
    return not isinstance(holder, _HOLDERS.get(str(name), ()))


def set_constant(module: nn.Module, constant: Constant) -> None:
    """Write one changed size into a module, or into a node of its graph.

    Raises:
        SubpruneError: If there is no such size.
    """
    try:
        if constant.attribute and not isinstance(module, fx.GraphModule):
            layer, name, *index = constant.attribute
            holder = module.get_submodule(str(layer))
            setattr(holder, str(name), edited(getattr(holder, str(name)), index, constant.value))
            return
        if constant.owner == "module":
            value = tuple(constant.value) if isinstance(constant.value, list) else constant.value
            owner = module.get_submodule(constant.name)
            _check_sizes(getattr(owner, str(constant.path[0])))
            setattr(owner, str(constant.path[0]), value)
            return
        assert isinstance(module, fx.GraphModule)
        edit_node(next(node for node in module.graph.nodes if node.name == constant.name), constant)
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        path = ".".join(str(step) for step in constant.path)
        raise SubpruneError(
            f"there is no size {path} in {constant.owner} {constant.name}",
            where=type(module).__name__,
            remedy="apply the plan to its own network",
        ) from error


def _check_sizes(value: Any) -> None:
    """That an attribute of a module is one size or some."""
    if not all(isinstance(item, int) for item in (value if isinstance(value, (tuple, list)) else [value])):
        raise TypeError


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


_aten = torch.ops.aten
# Ops that cut into parts of one size or number, and what cuts into parts of given sizes instead.
_SIZED: dict[Any, Any] = {
    "chunk": "split_with_sizes",
    torch.chunk: torch.split_with_sizes,
    _aten.chunk.default: _aten.split.sizes,
    _aten.split.Tensor: _aten.split_with_sizes.default,
    _aten.tensor_split.sections: _aten.tensor_split.indices,
}
_COUNTED = {sized: counted for counted, sized in _SIZED.items()}


def retargeted(target: Any, value: Any) -> Any:
    """The op that takes `value`, a list of sizes or else a number of parts, where `target` takes the other."""
    return (_SIZED if isinstance(value, list) else _COUNTED).get(target, target)


def edit_node(node: fx.Node, constant: Constant) -> None:
    """Write a size into a node's arguments; an equal split that becomes unequal changes its op too."""
    field, *path = constant.path
    setattr(node, str(field), edited(getattr(node, str(field)), path, constant.value))
    node.target = retargeted(node.target, constant.value)


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
