"""Ranges of a dimension, its parts and its padding, re-read off the channels that survive."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from subprune_fx.frontends.fx_held import held
from subprune_fx.frontends.fx_sites import Keep, Site, alive_along, path_of, sizes_left
from subprune_fx.graph.labels import varying
from subprune_fx.graph.step import leaves
from subprune_fx.plan import Constant


def ranges(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Ranges: the survivors before them say where they start and stop; scattered ones become index lists."""
    before = site.before
    alive = alive_along(before, keep)
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
        return (*found, *held(site, keep, found))
    axis = int(site.call.get("dim", 0)) % before.ndim
    kept = alive[axis]
    if kept is None:
        return held(site, keep)
    start = int(site.call.get("start", 0) or 0)
    if site.call.name == "narrow":
        new = _range(kept, slice(start, start + int(site.call.get("length"))))
        fields = {"start": new["start"], "length": new["stop"] - new["start"]} if isinstance(new, dict) else {}
    else:
        part = slice(start, site.call.get("end"), site.call.get("step"))
        new = None if _is_whole(part) else _range(kept, part)
        fields = {"start": new["start"], "end": new["stop"]} if isinstance(new, dict) else {}
    told = {name: value for name, value in fields.items() if name in site.call.arguments}  # an end need not be
    return tuple(Constant("node", site.node.name, path_of(site, name), value) for name, value in told.items())


def _picked(item: Any, spelled: Any, position: int) -> slice | list[int] | None:
    """What one item between brackets takes of its dimension, unless all; a list only where the network holds it."""
    if isinstance(item, slice):
        return None if _is_whole(item) else item
    if isinstance(item, list):
        return item if all(type(place) is int for place in item) else None
    node = spelled[position] if isinstance(spelled, (tuple, list)) else spelled
    own = isinstance(node, fx.Node) and node.op == "get_attr" and isinstance(item, Tensor)
    return item.tolist() if own and item.ndim == 1 and item.dtype != torch.bool else None


def _is_whole(part: slice) -> bool:
    """Whether a range takes a dimension as it is, whatever its size (exported graphs end it at the largest integer)."""
    ends = part.stop is None or (isinstance(part.stop, int) and part.stop == sys.maxsize)
    return part.start in (None, 0) and part.step in (None, 1) and ends


def _range(alive: Keep, part: slice | list[int]) -> Any:
    """What `part` of a dimension becomes: positions among the survivors."""
    new = np.cumsum(alive) - 1
    chosen = np.arange(alive.size)[part]
    positions = new[chosen[alive[chosen]]]
    if positions.size and np.array_equal(positions, np.arange(positions[0], positions[-1] + 1)):
        return {"start": int(positions[0]), "stop": int(positions[-1]) + 1, "step": None}
    return [int(position) for position in positions]


def split_sizes(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Parts as large as what survives of each."""
    parts = leaves(site.after)
    axis = int(site.call.get("dim", 0)) % parts[0].ndim
    sizes = [sizes_left(part, keep)[axis] for part in parts]
    if sizes == [part.shape[axis] for part in parts]:
        return held(site, keep)
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


def pad_amounts(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """As many padded channels as survive."""
    before, after = site.before, leaves(site.after)[0]
    amounts, left = site.call.get("pad", ()), alive_along(after, keep)
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
        path = path_of(site, "pad")
        found += [Constant("node", site.node.name, (*path, position + i), int(count)) for i, count in enumerate(counts)]
    return (*found, *held(site, keep, found))
