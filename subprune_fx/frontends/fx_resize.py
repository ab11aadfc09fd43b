"""Sizes baked into an fx graph, re-read off the channels that survive: one function per `Resize`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subprune_fx.frontends.fx_counts import conv_groups, kept_positions, normalized_shape, num_groups, spelled_shape
from subprune_fx.frontends.fx_held import scaled
from subprune_fx.frontends.fx_ranges import pad_amounts, ranges, split_sizes
from subprune_fx.frontends.fx_sites import Keep, Site
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.frontends.onnx_resize import resize_onnx
from subprune_fx.graph.channels import ChannelGraph
from subprune_fx.graph.kinds import MOVING, Kind, Resize
from subprune_fx.graph.labels import Labels, compact, expand, survivors
from subprune_fx.graph.step import leaves
from subprune_fx.plan import Constant


def resize(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Constants of one node that change when only the labels in `keep` survive."""
    if site.call.row is None:
        return ()
    if isinstance(site.node.target, OnnxOp):
        return resize_onnx(site, keep)
    if site.call.row.kind is Kind.CONTRACT:
        return conv_groups(site, keep)
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


_RULES: dict[Resize, Callable[[Site, Keep], tuple[Constant, ...]]] = {
    Resize.NONE: scaled,
    Resize.SHAPE: spelled_shape,
    Resize.SLICE: ranges,
    Resize.SPLIT: split_sizes,
    Resize.PAD: pad_amounts,
    Resize.LIKE: _none,
    Resize.NORM: normalized_shape,
    Resize.GROUPS: num_groups,
    Resize.KEPT: kept_positions,
}
