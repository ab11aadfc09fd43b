"""Sizes baked into an fx graph, re-read off the channels that survive: one function per `Resize`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx.frontends.calls import Call
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.frontends.onnx_resize import resize_onnx
from subprune_fx.graph.channels import ChannelGraph
from subprune_fx.graph.kinds import MOVING, Kind, Resize
from subprune_fx.graph.labels import Labels, compact, expand, survivors, varying, vector
from subprune_fx.graph.step import Tree, leaves
from subprune_fx.plan import Constant

Keep = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Site:
    """A node whose arguments may spell sizes.

    Attributes:
        node: The fx node.
        call: Its bound call.
        operands: Labels of its tensor operands; the sizes it spells are read off the first.
        after: Labels of its value.
        rest: Its arguments after the first, sizes evaluated.
        run: The op on labels, with constants changed.
        numbers: Inputs of the node that are no tensors.
        varying: Nodes whose value depends on the number of samples.
        number: What a node that is no tensor computes when only some labels survive.
    """

    node: fx.Node
    call: Call
    operands: tuple[Labels, ...]
    after: Tree
    rest: tuple[Any, ...]
    run: Callable[..., Tree]
    numbers: frozenset[fx.Node]
    varying: AbstractSet[fx.Node]
    number: Callable[[fx.Node, Keep], Any]

    @property
    def before(self) -> Labels:
        """Labels of the first operand."""
        return self.operands[0]


def resize(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Constants of one node that change when only the labels in `keep` survive."""
    if site.call.row is None:
        return ()
    if isinstance(site.node.target, OnnxOp):
        return resize_onnx(site, keep)
    if site.call.row.kind is Kind.CONTRACT:
        return _groups(site, keep)
    if keep.all():
        return ()
    return _RULES[site.call.row.resize](site, keep)


def survives(site: Site, channels: ChannelGraph, samples: Sequence[Keep]) -> bool:
    """Whether a moving op, with its sizes re-read, moves what survives to where its survivors should be.

    Tried with `samples`, complementary choices of units, so that each unit is once kept and once dropped.
    """
    if site.call.row is None or site.call.row.kind not in MOVING:
        return True
    touched = [
        labels
        for labels in (*site.operands, *leaves(site.after))
        if channels.prunable[channels.unit[compact(labels)]].any()
    ]
    if not touched:
        return True
    return all(_consistent(site, keep, channels.unit) for keep in samples)


def _consistent(site: Site, keep: Keep, unit: NDArray[np.int64]) -> bool:
    sized = site.call.row is not None and site.call.row.kind in (Kind.PAD, Kind.SPREAD)  # new elements, no moved ones
    try:
        constants = resize(site, keep)
        operands: list[NDArray[Any]] = [_cut(labels, keep) for labels in site.operands]
        if sized:  # an integer cannot be padded with -inf
            operands = [np.zeros(part.shape) for part in operands]
        out = leaves(site.run(operands, constants, keep))
        want = [_cut(labels, keep) for labels in leaves(site.after)]
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    if sized:
        return [part.shape for part in out] == [part.shape for part in want]
    return len(out) == len(want) and all(_same(a, b, unit) for a, b in zip(out, want, strict=True))


def _same(left: Labels, right: Labels, unit: NDArray[np.int64]) -> bool:
    """Whether two arrays hold the same units, without spelling out where they do not vary."""
    return left.shape == right.shape and bool((unit[compact(left)] == unit[compact(right)]).all())


def _cut(labels: Labels, keep: Keep) -> Labels:
    """What survives of labels; where they do not vary, none is lost, and they take no more memory than before."""
    small, shape = compact(labels), list(labels.shape)
    for axis, index in enumerate(survivors(labels, keep)):
        if index is not None:
            small, shape[axis] = small.take(index, axis), index.size
    return expand(small, shape)


def _none(_site: Site, _keep: Keep) -> tuple[Constant, ...]:
    return ()


def _scaled(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Ops that move nothing: their numbers, such as a scale of `x.shape[1] ** -0.5`."""
    return () if site.call.row is None or site.call.row.kind in MOVING else _held(site, keep)


def _held(site: Site, keep: Keep, changed: Sequence[Constant] = ()) -> tuple[Constant, ...]:
    """Numbers that enter the arithmetic, or say where to cut what stays whole, stay what they were.

    They were computed from a size that shrinks, but the weights were trained with the original number. One that
    also depends on the number of samples has no fixed value and is left to the graph.

    Args:
        site: The node.
        keep: By label, whether it survives.
        changed: What is known of it; the rest is looked at.
    """
    numbers, everything = site.numbers - site.varying, np.ones_like(keep)
    found = []
    for path, argument in _spelled(site.node) if numbers else ():
        known = any(path[: len(constant.path)] == constant.path for constant in changed)
        used: list[fx.Node] = []
        fx.node.map_arg(argument, used.append)
        if known or not used or not numbers.issuperset(used):
            continue
        old, new = (_evaluated(site, argument, labels) for labels in (everything, keep))
        if isinstance(old, int | float | slice) and old != new:
            value = {"start": old.start, "stop": old.stop, "step": old.step} if isinstance(old, slice) else old
            found.append(Constant("node", site.node.name, path, value))
    return tuple(found)


def _evaluated(site: Site, argument: Any, keep: Keep) -> Any:
    return fx.node.map_arg(argument, lambda node: site.number(node, keep))


def _spelled(node: fx.Node) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Arguments and entries of lists, with where they are."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [
        *((("args", position), argument) for position, argument in enumerate(node.args)),
        *((("kwargs", name), argument) for name, argument in node.kwargs.items()),
    ]
    for path, argument in pending:
        if isinstance(argument, (tuple, list)):
            pending += [((*path, position), entry) for position, entry in enumerate(argument)]
        else:
            yield path, argument


def _groups(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """As many groups as still have channels: of a depthwise convolution, one for each."""
    labels = site.before
    spelled = site.call.get("groups", 1)
    groups, now = (_evaluated(site, spelled, labels) for labels in (np.ones_like(keep), keep))
    if not isinstance(groups, int) or groups == 1 or labels.ndim < 2 or labels.shape[1] % groups:
        return ()
    alive = _alive(labels, keep)[1]
    count = groups if alive is None else int(alive.reshape(groups, -1).any(axis=1).sum())
    if count == now:
        return ()
    if site.call.module is not None:
        return (Constant("module", site.call.path, ("groups",), count),)
    return (Constant("node", site.node.name, _path(site, "groups"), count, _layers(site, "groups")),)


def _shape(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """view, reshape, expand, unflatten: the sizes among the output's that change.

    A size that the graph computes is overwritten where it comes out wrong: it was computed from sizes that mean
    something else now. One that depends on the number of samples is left for torch to infer then.
    """
    sizes, old = _sizes(site.after, keep), leaves(site.after)[0].shape
    if site.call.module is not None:
        dim = int(site.call.get("dim", 1)) % len(sizes)
        parts = tuple(site.call.get("unflattened_size", ()))
        new_parts = [part if part == -1 else sizes[dim + i] for i, part in enumerate(parts)]
        if tuple(new_parts) == parts:
            return ()
        return (Constant("module", site.call.path, ("unflattened_size",), new_parts),)
    offset = 0
    if site.call.name == "unflatten":
        offset = int(site.node.args[1]) % site.before.ndim  # type: ignore[arg-type]
    found = []
    spelled = site.node.args[1:]
    if len(spelled) == 1 and isinstance(spelled[0], fx.Node):
        whole = site.number(spelled[0], keep)
        if isinstance(whole, (tuple, list)):  # x.shape: a batch size is left for torch to infer
            new_shape = [-1, *sizes[1:]] if spelled[0] in site.varying else sizes
            return () if list(whole) == sizes else (Constant("node", site.node.name, ("args", 1), new_shape),)
    for path, position, value in _written(site):
        new = sizes[offset + position]
        now = site.number(value, keep) if isinstance(value, fx.Node) else old[offset + position]
        if new != now:
            found.append(Constant("node", site.node.name, path, -1 if value in site.varying else new))
    if any(constant.value == -1 for constant in found):  # torch infers only one
        found += [
            Constant("node", site.node.name, path, sizes[offset + position])
            for path, position, _ in _written(site, inferred=True)
        ]
    return tuple(found)


def _written(site: Site, *, inferred: bool = False) -> list[tuple[tuple[str | int, ...], int, Any]]:
    """The sizes that a shape argument spells out, or leaves to be inferred: (path, which dimension, the argument)."""
    start = 2 if site.call.name == "unflatten" else 1
    rest = site.node.args[start:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        return [(("args", start, i), i, value) for i, value in enumerate(rest[0]) if (value == -1) is inferred]
    if rest:
        return [(("args", start + i), i, value) for i, value in enumerate(rest) if (value == -1) is inferred]
    for key in ("shape", "size", "sizes"):
        values = site.node.kwargs.get(key)
        if isinstance(values, (tuple, list)):
            return [(("kwargs", key, i), i, value) for i, value in enumerate(values) if (value == -1) is inferred]
    return []


def _slice(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Ranges: the survivors before them say where they start and stop; scattered ones become index lists."""
    before = site.before
    alive = _alive(before, keep)
    if site.call.name == "getitem":
        index = site.rest[0]
        items = index if isinstance(index, tuple) else (index,)
        found = []
        axis = 0
        for position, item in enumerate(items):
            if item is Ellipsis:
                used = sum(1 for other in items[position + 1 :] if other is not None)
                axis = before.ndim - used
                continue
            left = alive[axis] if axis < before.ndim else None
            picked = _picked(item, site.node.args[1], position)
            if picked is not None and left is not None:
                new = _range(left, picked)
                path = ("args", 1, position) if isinstance(index, tuple) else ("args", 1)
                found.append(Constant("node", site.node.name, path, new))
            axis += item is not None
        return (*found, *_held(site, keep, found))
    axis = int(site.call.get("dim", 0)) % before.ndim
    kept = alive[axis]
    if kept is None:
        return _held(site, keep)
    start = int(site.call.get("start", 0) or 0)
    if site.call.name == "narrow":
        new = _range(kept, slice(start, start + int(site.call.get("length"))))
        fields = {"start": new["start"], "length": new["stop"] - new["start"]} if isinstance(new, dict) else {}
    else:
        part = slice(start, site.call.get("end"), site.call.get("step"))
        new = None if _is_whole(part) else _range(kept, part)
        fields = {"start": new["start"], "end": new["stop"]} if isinstance(new, dict) else {}
    told = {name: value for name, value in fields.items() if name in site.call.arguments}  # an end need not be
    return tuple(Constant("node", site.node.name, _path(site, name), value) for name, value in told.items())


def _picked(item: Any, spelled: Any, position: int) -> slice | list[int] | None:
    """What one item between brackets takes of its dimension, unless all; a list only where the network holds it."""
    if isinstance(item, slice):
        return None if _is_whole(item) else item
    if isinstance(item, list):
        return item if all(type(place) is int for place in item) else None
    node = spelled[position] if isinstance(spelled, (tuple, list)) else spelled
    held = isinstance(node, fx.Node) and node.op == "get_attr" and isinstance(item, Tensor)
    return item.tolist() if held and item.ndim == 1 and item.dtype != torch.bool else None


def _is_whole(part: slice) -> bool:
    """Whether a range takes a dimension as it is, whatever its size (exported graphs end it at the largest integer)."""
    ends = part.stop is None or (isinstance(part.stop, int) and part.stop == sys.maxsize)
    return part.start in (None, 0) and part.step in (None, 1) and ends


def _alive(labels: Labels, keep: Keep) -> list[Keep | None]:
    """By dimension, which of its indices survive; None where all do."""
    picked = survivors(labels, keep)
    return [
        None if index is None else np.isin(np.arange(size), index)
        for size, index in zip(labels.shape, picked, strict=True)
    ]


def _range(alive: Keep, part: slice | list[int]) -> Any:
    """What `part` of a dimension becomes: positions among the survivors."""
    new = np.cumsum(alive) - 1
    chosen = np.arange(alive.size)[part]
    positions = new[chosen[alive[chosen]]]
    if positions.size and np.array_equal(positions, np.arange(positions[0], positions[-1] + 1)):
        return {"start": int(positions[0]), "stop": int(positions[-1]) + 1, "step": None}
    return [int(position) for position in positions]


def _split(site: Site, keep: Keep) -> tuple[Constant, ...]:
    parts = leaves(site.after)
    axis = int(site.call.get("dim", 0)) % parts[0].ndim
    sizes = [_sizes(part, keep)[axis] for part in parts]
    if sizes == [part.shape[axis] for part in parts]:
        return _held(site, keep)
    if site.call.name == "chunk" and len(set(sizes)) == 1:
        return ()
    if site.call.name == "tensor_split":
        sizes = np.cumsum(sizes[:-1]).tolist()
    return (Constant("node", site.node.name, _split_path(site), sizes),)


def _split_path(site: Site) -> tuple[str | int, ...]:
    for key in ("split_size_or_sections", "split_size", "split_sizes", "indices_or_sections"):
        if key in site.node.kwargs:
            return ("kwargs", key)
    return ("args", 1)


def _pad(site: Site, keep: Keep) -> tuple[Constant, ...]:
    before, after = site.before, leaves(site.after)[0]
    amounts, left = site.call.get("pad", ()), _alive(after, keep)
    found = []
    for axis in varying(before):
        position = 2 * (before.ndim - 1 - axis)
        if site.call.module is not None or position >= len(amounts):
            continue
        front, back = amounts[position : position + 2]
        alive = left[axis]
        if alive is None:
            continue
        counts = (
            alive[:front].sum() if front > 0 else front,
            alive[alive.size - back :].sum() if back > 0 else back,
        )
        path = _path(site, "pad")
        found += [Constant("node", site.node.name, (*path, position + i), int(count)) for i, count in enumerate(counts)]
    return (*found, *_held(site, keep, found))


def _norm(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """The shape that is normalised over; one that the graph computes comes out right by itself."""
    shape = site.call.get("normalized_shape")
    if not isinstance(shape, (tuple, list)):
        return ()
    new = _sizes(site.before, keep)[-len(shape) :]
    if site.call.module is not None:
        return () if new == list(shape) else (Constant("module", site.call.path, ("normalized_shape",), new),)
    path = _path(site, "normalized_shape")
    return tuple(
        Constant("node", site.node.name, (*path, axis), size, _layers(site, "normalized_shape", axis))
        for axis, (size, old) in enumerate(zip(new, shape, strict=True))
        if isinstance(old, int) and size != old
    )


def _num_groups(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Whole groups of a GroupNorm are dropped; a single one stays."""
    labels, count = vector(site.before, 1), int(site.call.get("num_groups"))
    new = int(keep[labels].sum()) // (labels.size // count)
    if count in (1, new):
        return ()
    if site.call.module is not None:
        return (Constant("module", site.call.path, ("num_groups",), new),)
    return (Constant("node", site.node.name, _path(site, "num_groups"), new, _layers(site, "num_groups")),)


def _kept(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Which positions are left, and of how many."""
    left = survivors(site.before, keep)[-1]
    if left is None:
        return ()
    found = {"kept": left.tolist(), "size": site.before.shape[-1]}
    return tuple(Constant("node", site.node.name, ("kwargs", name), value) for name, value in found.items())


def _layers(site: Site, name: str, *index: int) -> tuple[str | int, ...]:
    """Where the layer whose weight a function reads keeps the size that the function is told."""
    weight = site.call.arguments.get("weight")
    layer, _, role = str(getattr(weight, "target", "")).rpartition(".")
    return (layer, name, *index) if layer and role == "weight" else ()


def _path(site: Site, name: str) -> tuple[str | int, ...]:
    """Where a named argument of a node is written."""
    if name in site.node.kwargs:
        return ("kwargs", name)
    return ("args", list(site.call.arguments).index(name))


def _sizes(tree: Tree, keep: Keep) -> list[int]:
    return survivor_shapes(tree, keep)[0]


def survivor_shapes(tree: Tree, keep: Keep) -> list[list[int]]:
    """Shape of each tensor of a value when only the labels in `keep` survive."""
    return [
        [
            size if index is None else len(index)
            for size, index in zip(labels.shape, survivors(labels, keep), strict=True)
        ]
        for labels in leaves(tree)
    ]


_RULES: dict[Resize, Callable[[Site, Keep], tuple[Constant, ...]]] = {
    Resize.NONE: _scaled,
    Resize.SHAPE: _shape,
    Resize.SLICE: _slice,
    Resize.SPLIT: _split,
    Resize.PAD: _pad,
    Resize.LIKE: _none,
    Resize.NORM: _norm,
    Resize.GROUPS: _num_groups,
    Resize.KEPT: _kept,
}
