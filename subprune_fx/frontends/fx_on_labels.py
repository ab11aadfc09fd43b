"""A node's op run again, on labels or on what is left of them in place of its activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.frontends.fx_edit import edited, retargeted
from subprune_fx.frontends.fx_seen import Seen
from subprune_fx.frontends.fx_sites import survivor_shapes
from subprune_fx.graph.kinds import Resize, Row
from subprune_fx.graph.labels import Labels, tighten
from subprune_fx.graph.step import Param, Tree, leaves
from subprune_fx.plan import Constant

_LABEL_METHODS = {"view": "reshape", "view_as": "reshape_as"}


def runner(seen: Seen, node: fx.Node, row: Row | None) -> Callable[..., Tree]:
    """The node's own op on labels: those of its first tensor argument replaced, everything else as it was."""
    where, key = seen.first_tensors(node)
    like = row is not None and row.resize is Resize.LIKE and not node.kwargs
    argument = None if where is None else getattr(node, where)[key]
    # Activations would stay until the analysis is over: labels take their place.
    values = {n: pytree.tree_map_only(Tensor, without_values, seen.values[n]) for n in node.all_input_nodes}

    def run(
        labels: Sequence[Labels], constants: Sequence[Constant] = (), keep: NDArray[np.bool_] | None = None
    ) -> Tree:
        queue = [torch.from_numpy(array) for array in labels]
        numbers = {} if keep is None else {n: number(seen, n, keep) for n in values if like or seen.is_number(n)}
        now = {**values, **numbers}
        call = {part: fx.node.map_arg(getattr(node, part), lambda n: now[n]) for part in ("args", "kwargs")}
        if like:
            call["args"] = fx.node.map_arg(node.args, lambda n: _refill(seen.trees[n], queue))
        elif where is not None:
            first = fx.node.map_arg(argument, lambda n: _refill(seen.trees[n], queue))
            call[where] = edited(call[where], [key], first)
        for change in constants:
            field, *path = change.path
            if field in call:
                call[str(field)] = edited(call[str(field)], path, change.value)
        out = _invoke(node, seen.root, call["args"], call["kwargs"], constants)
        return pytree.tree_map_only(Tensor, lambda t: tighten(t.numpy()), out)

    return run


def number(seen: Seen, node: fx.Node, keep: NDArray[np.bool_]) -> Any:
    """What a node computes when only the labels in `keep` survive; of tensors, only the shape is right."""
    tree = seen.trees[node]
    if isinstance(tree, Param):
        return torch.empty(tree.shape, device="meta")
    if leaves(tree):
        return _refill(tree, [torch.empty(sizes, device="meta") for sizes in survivor_shapes(tree, keep)])
    if node in seen.constants:
        return seen.constants[node]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: number(seen, n, keep))
    return _invoke(node, seen.root, args, kwargs, ())


def permuted(seen: Seen, node: fx.Node, param: Param) -> Param:
    """A parameter read with its dimensions in another order is still that parameter."""
    sizes = list(range(1, len(param.shape) + 1))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: torch.empty(sizes))
    out = _invoke(node, seen.root, args, kwargs, ())
    return param.permuted([sizes.index(size) for size in out.shape])


def _invoke(node: fx.Node, root: fx.GraphModule, args: Any, kwargs: Any, constants: Sequence[Constant]) -> Any:
    """Run a node's op on labels: `view` as `reshape`, since expanded labels have no contiguous memory."""
    if node.op == "call_module":
        module = copy.copy(root.get_submodule(str(node.target)))
        for change in constants:
            module.__dict__[str(change.path[0])] = (
                tuple(change.value) if isinstance(change.value, list) else change.value
            )
        return module(*args, **kwargs)
    target = node.target
    for change in constants:
        target = retargeted(target, change.value)
    if node.op == "call_method":
        first, *rest = args
        name = _LABEL_METHODS.get(str(target), str(target))
        return getattr(first, name)(*rest, **kwargs)
    name = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
    if name in ("view", "_unsafe_view"):
        return args[0].reshape(*args[1:])
    assert callable(target)
    return target(*args, **kwargs)


def _refill(tree: Tree | Param, queue: list[Tensor]) -> Any:
    """A value shaped like `tree`, its tensors taken from the front of `queue`."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_refill(item, queue) for item in tree)
    if isinstance(tree, Mapping):
        return {name: _refill(item, queue) for name, item in tree.items()}
    return None if tree is None else queue.pop(0)


def without_values(tensor: Tensor) -> Tensor:
    """Of an activation the sizes; an index, or a single number, is what it holds."""
    return tensor.to("meta") if tensor.is_floating_point() and tensor.numel() > 1 else tensor
