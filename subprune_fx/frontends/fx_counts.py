"""Shapes and counts that a node spells, re-read off the channels that survive."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from subprune_fx.frontends.fx_held import evaluated
from subprune_fx.frontends.fx_sites import Keep, Site, alive_along, layer_path, path_of, sizes_left
from subprune_fx.graph.labels import survivors, vector
from subprune_fx.graph.step import leaves
from subprune_fx.plan import Constant


def spelled_shape(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """view, reshape, expand, unflatten: the sizes among the output's that change.

    A size that the graph computes is overwritten where it comes out wrong: it was computed from sizes that mean
    something else now. One that depends on the number of samples is left for torch to infer then.
    """
    sizes, old = sizes_left(site.after, keep), leaves(site.after)[0].shape
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


def normalized_shape(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """The shape that is normalised over; one that the graph computes comes out right by itself."""
    shape = site.call.get("normalized_shape")
    if not isinstance(shape, (tuple, list)):
        return ()
    new = sizes_left(site.before, keep)[-len(shape) :]
    if site.call.module is not None:
        return () if new == list(shape) else (Constant("module", site.call.path, ("normalized_shape",), new),)
    path = path_of(site, "normalized_shape")
    return tuple(
        Constant("node", site.node.name, (*path, axis), size, layer_path(site, "normalized_shape", axis))
        for axis, (size, old) in enumerate(zip(new, shape, strict=True))
        if isinstance(old, int) and size != old
    )


def conv_groups(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """As many groups as still have channels: of a depthwise convolution, one for each."""
    labels = site.before
    spelled = site.call.get("groups", 1)
    groups, now = (evaluated(site, spelled, labels) for labels in (np.ones_like(keep), keep))
    if not isinstance(groups, int) or groups == 1 or labels.ndim < 2 or labels.shape[1] % groups:
        return ()
    alive = alive_along(labels, keep)[1]
    count = groups if alive is None else int(alive.reshape(groups, -1).any(axis=1).sum())
    if count == now:
        return ()
    if site.call.module is not None:
        return (Constant("module", site.call.path, ("groups",), count),)
    return (Constant("node", site.node.name, path_of(site, "groups"), count, layer_path(site, "groups")),)


def num_groups(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Whole groups of a GroupNorm are dropped; a single one stays."""
    labels, count = vector(site.before, 1), int(site.call.get("num_groups"))
    new = int(keep[labels].sum()) // (labels.size // count)
    if count in (1, new):
        return ()
    if site.call.module is not None:
        return (Constant("module", site.call.path, ("num_groups",), new),)
    return (Constant("node", site.node.name, path_of(site, "num_groups"), new, layer_path(site, "num_groups")),)


def kept_positions(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Which positions are left, and of how many."""
    left = survivors(site.before, keep)[-1]
    if left is None:
        return ()
    found = {"kept": left.tolist(), "size": site.before.shape[-1]}
    return tuple(Constant("node", site.node.name, ("kwargs", name), value) for name, value in found.items())
