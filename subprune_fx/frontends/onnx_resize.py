"""Sizes in the calls of an imported ONNX graph, re-read off the channels that survive: one function per op type."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from subprune_fx.frontends.fx_sites import Keep, sizes_left
from subprune_fx.graph.labels import Labels, survivors, varying
from subprune_fx.graph.step import leaves
from subprune_fx.plan import Constant

Path = tuple[str | int, ...]


def resize_onnx(site: Any, keep: Keep) -> tuple[Constant, ...]:
    """Constants of one node that change when only the labels in `keep` survive.

    Args:
        site: An `fx_sites.Site` whose node calls an `OnnxOp`.
        keep: By label.
    """
    rule = _RULES.get(site.node.target.op_type)
    if rule is None:
        return ()
    return tuple(Constant("node", site.node.name, path, value) for path, value in rule(site, keep))


Changes = list[tuple[Path, Any]]


def _alive(labels: Labels, axis: int, keep: Keep) -> Keep:
    """Which indices of one dimension survive."""
    index = survivors(labels, keep)[axis]
    return np.isin(np.arange(labels.shape[axis]), np.arange(labels.shape[axis]) if index is None else index)


def _spelled(node: fx.Node, position: int, name: str) -> tuple[Path, Any]:
    """Where an operand is, or in older opsets the attribute of that name, and its value."""
    if node.kwargs.get(name) is not None:
        return ("kwargs", name), node.kwargs[name]
    return ("args", position), node.args[position] if len(node.args) > position else None


def _reshape(site: Any, keep: Keep) -> Changes:
    """Sizes that come out wrong; a 0 copies the operand's size, and stays where that is right.

    One that depends on the number of samples (samples x heads, say) is inferred then, and what was is spelled out.
    """
    path, values = _spelled(site.node, 1, "shape")
    if not isinstance(values, (list, tuple)):
        return []
    after = leaves(site.after)[0]
    new, before = sizes_left(after, keep), sizes_left(site.before, keep)
    copies = not site.node.kwargs.get("allowzero")

    def is_right(i: int) -> bool:
        return before[i] == new[i] if copies and values[i] == 0 else values[i] == -1 or new[i] == after.shape[i]

    wrong = [i for i in range(len(values)) if not is_right(i)]
    inferred = next((i for i in wrong if isinstance(values[i], fx.Node)), None)
    found: Changes = [((*path, i), -1 if i == inferred else new[i]) for i in wrong]
    if inferred is not None:
        found += [((*path, i), new[i]) for i, value in enumerate(values) if value == -1]
    return found


def _expand(site: Any, keep: Keep) -> Changes:
    """Sizes other than 1, aligned to the right; a 1 takes over what the operand has."""
    path, values = _spelled(site.node, 1, "shape")
    if not isinstance(values, (list, tuple)):
        return []
    after = leaves(site.after)[0]
    new, before = sizes_left(after, keep), (1,) * (after.ndim - site.before.ndim) + site.before.shape
    lead = after.ndim - len(values)
    return [
        ((*path, i), 1 if before[lead + i] == after.shape[lead + i] else new[lead + i])
        for i, value in enumerate(values)
        if value != 1 and new[lead + i] != after.shape[lead + i]
    ]


def _resize(site: Any, keep: Keep) -> Changes:
    """The channel among the output sizes."""
    values = site.node.args[3] if len(site.node.args) > 3 else None
    after = leaves(site.after)[0]
    new = sizes_left(after, keep)
    axes = list(site.node.kwargs.get("axes") or range(after.ndim))
    if not isinstance(values, (list, tuple)):
        return []
    return [(("args", 3, i), new[axis]) for i, axis in enumerate(axes) if new[axis] != after.shape[axis]]


def _slice(site: Any, keep: Keep) -> Changes:
    """Start and end of a range of channels, counted among the survivors."""
    (starts, first), (ends, last) = _spelled(site.node, 1, "starts"), _spelled(site.node, 2, "ends")
    _, axes = _spelled(site.node, 3, "axes")
    _, steps = _spelled(site.node, 4, "steps")
    before = site.before
    found: Changes = []
    if not isinstance(first, (list, tuple)) or not isinstance(last, (list, tuple)):
        return []
    for k, axis in enumerate(axes if axes is not None else range(len(first))):
        axis %= before.ndim  # noqa: PLW2901 - counted from the end in some files
        step = 1 if steps is None else steps[k]
        if axis not in varying(before) or step < 1:
            continue
        chosen = np.arange(before.shape[axis])[slice(first[k], last[k], step)]
        positions = _positions(_alive(before, axis, keep), chosen)
        if positions:
            found += [((*starts, k), positions[0]), ((*ends, k), positions[-1] + 1)]
    return found


def _positions(alive: Keep, chosen: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Where the survivors among `chosen` are among all survivors."""
    new = np.cumsum(alive) - 1
    return [int(new[index]) for index in np.asarray(chosen) if alive[index]]


def _split(site: Any, keep: Keep) -> Changes:
    path, values = _spelled(site.node, 1, "split")
    if not isinstance(values, (list, tuple)):
        return []
    before = site.before
    axis = int(site.node.kwargs.get("axis", 0)) % before.ndim
    alive = _alive(before, axis, keep)
    ends = np.cumsum([0, *values])
    sizes = [int(alive[a:b].sum()) for a, b in itertools.pairwise(ends)]
    return [((*path, k), new) for k, (old, new) in enumerate(zip(values, sizes, strict=True)) if old != new]


def _pad(site: Any, keep: Keep) -> Changes:
    path, values = _spelled(site.node, 1, "pads")
    before, after = site.before, leaves(site.after)[0]
    axes = site.node.args[3] if len(site.node.args) > 3 and site.node.args[3] is not None else range(before.ndim)
    found: Changes = []
    for k, axis in enumerate(axes):
        axis %= before.ndim  # noqa: PLW2901
        if axis not in varying(before) and axis not in varying(after):
            continue
        front, back = values[k], values[k + len(values) // 2]
        alive = _alive(after, axis, keep)
        counts = (
            int(alive[:front].sum()) if front > 0 else front,
            int(alive[alive.size - back :].sum()) if back > 0 else back,
        )
        found += [((*path, k), counts[0]), ((*path, k + len(values) // 2), counts[1])]
    return found


def _gather(site: Any, keep: Keep) -> Changes:
    """Chosen channels, counted among the survivors."""
    indices = site.node.args[1]
    axis = int(site.node.kwargs.get("axis", 0)) % site.before.ndim
    if isinstance(indices, fx.Node) or axis not in varying(site.before):
        return []
    chosen = np.atleast_1d(np.asarray(indices)) % site.before.shape[axis]
    positions = _positions(_alive(site.before, axis, keep), chosen)
    if isinstance(indices, int):
        return [(("args", 1), positions[0])] if positions else []
    return [(("args", 1), positions)]


def _gather_nd(site: Any, keep: Keep) -> Changes:
    """The same for a column of positions of the first dimension."""
    indices, before = site.node.args[1], site.before
    if isinstance(indices, fx.Node) or 0 not in varying(before):
        return []
    chosen = np.asarray(indices)[:, 0] % before.shape[0]
    return [(("args", 1), [[place] for place in _positions(_alive(before, 0, keep), chosen)])]


def _group(site: Any, keep: Keep) -> Changes:
    """As many groups as still have channels: of a depthwise convolution, one for each."""
    groups, before = site.node.kwargs.get("group", 1), site.before
    if groups == 1 or before.ndim < 2 or before.shape[1] % groups:
        return []
    count = int(_alive(before, 1, keep).reshape(groups, -1).any(axis=1).sum())
    return [] if count == groups else [(("kwargs", "group"), count)]


def _num_groups(site: Any, keep: Keep) -> Changes:
    """Whole groups of a GroupNormalization are dropped; a single one stays."""
    count, alive = int(site.node.kwargs["num_groups"]), _alive(site.before, 1, keep)
    new = int(alive.sum()) // (alive.size // count)
    return [] if count in (1, new) else [(("kwargs", "num_groups"), new)]


_RULES: Mapping[str, Callable[[Any, Keep], Changes]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Conv": _group,
    "ConvTranspose": _group,
    "GroupNormalization": _num_groups,
}
