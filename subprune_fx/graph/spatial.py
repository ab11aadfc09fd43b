"""Ops on the channels of dimension 1: with parameters for each, or windows over the positions of one at a time.

Channels on the dimensions behind it are parts of those of dimension 1, and live or die with them.
"""

from __future__ import annotations

import math
import re

import numpy as np

from subprune_fx.graph.freezing import keep_params, refuse
from subprune_fx.graph.labels import Labels, along, distinct, expand, varying, vector
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Step, Tree, per_tensor, shape_of


def _by_channel(state: Propagation, step: Step) -> Labels | None:
    """The first operand's labels, a channel of dimension 1 one unit with its positions; None: not channels there."""
    labels: Labels = state.of(step.operands[0])
    channels = set(varying(labels))
    if channels <= {1}:
        return labels
    if 1 not in channels or 0 in channels:
        return None
    return state.tie(labels, range(2, labels.ndim), f"{step.op} reads it with fixed channels")


def per_channel(state: Propagation, step: Step) -> Tree:
    """Parameters have one entry per channel of dimension 1 (or a single one for all)."""
    assert step.row is not None
    alone = step.roles.get("weight")
    if step.row.roles == ("weight",) and alone is not None and math.prod(alone.shape) == 1:  # PReLU with one slope
        keep_params(state, step)
        return state.of(step.operands[0])
    labels = _by_channel(state, step)
    if labels is None:
        return refuse(state, step, f"{step.op} reads channels on a dimension other than 1")
    channels = vector(labels, 1)
    for param in step.roles.values():
        if param.shape == channels.shape:
            state.weight_axis(param, 0, channels)
            state.follows.append((channels, step.module))
    return (labels, *step.blank[1:]) if isinstance(step.blank, tuple) else labels


def spatial(state: Propagation, step: Step) -> Tree:
    """Batch and channel dimensions pass; positions are the op's own business.

    Other operands are as large (where the values of an unpooling go) and have the same channels, or say for all
    channels at once where to read; for each head where heads are among the samples. A dimension along which it looks at
    one position at a time is none of its business.
    """
    untouched = {0, 1, *step.attrs.get("still", ())}
    whole = state.of(step.operands[0])
    alone = len(step.operands) == 1 and not _unbatched(step.op, whole.ndim)
    if alone and not {*varying(whole)} <= {1} and {*varying(whole)} <= untouched:
        rest = whole[tuple(slice(None) if d in untouched else slice(0, 1) for d in range(whole.ndim))]
        return per_tensor(lambda shape: expand(rest, shape), step)
    labels = _by_channel(state, step)
    heads = labels is None and 0 in varying(state.of(step.operands[0]))
    if heads:
        labels = state.tie(whole, range(1, whole.ndim), f"{step.op} reads a head with fixed channels")
    if labels is None or _unbatched(step.op, labels.ndim):
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    for other in map(state.of, step.operands[1:]):
        if other.shape == labels.shape:
            state.unify(labels, other, f"{step.op} reads it with fixed positions")
        elif heads and 0 in varying(other):
            tied = state.tie(other, range(1, other.ndim), f"{step.op} reads at it for each head")
            state.unify(vector(labels, 0), vector(tied, 0), f"{step.op} reads at fixed places")
        else:
            state.freeze(other, f"{step.op} reads at it")
            if heads:
                state.freeze(labels, f"{step.op} reads every head at the same places")
    first = labels[(slice(None), slice(None), *(slice(0, 1) for _ in labels.shape[2:]))]
    return per_tensor(lambda shape: expand(first.reshape(first.shape[: len(shape)]), shape), step)


def _unbatched(op: str, rank: int) -> bool:
    """Whether `op`, named after its spatial dimensions (max_pool2d), takes dimension 0 of a tensor for the channels."""
    number = re.search(r"(\d)d", op.lower())
    return number is not None and rank < int(number[1]) + 2


def unfold(state: Propagation, step: Step) -> Tree:
    """(samples, channels, ...) to (samples, channels x window, windows): a channel's window is that channel."""
    labels, shape = _by_channel(state, step), shape_of(step)
    if labels is None or len(shape) != 3 or labels.ndim != 4:
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    channels = vector(labels, 1)
    return along(np.repeat(channels, shape[1] // channels.size), 1, shape)


def fold(state: Propagation, step: Step) -> Tree:
    """The way back: all of a window lives or dies together."""
    labels, shape = _by_channel(state, step), shape_of(step)
    if labels is None or len(shape) != 4 or labels.ndim != 3:
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    windows = vector(labels, 1).reshape(shape[1], -1)
    state.unify(np.broadcast_to(windows[:, :1], windows.shape), windows, f"{step.op} adds fixed channels to it")
    return along(windows[:, 0], 1, shape)


def normalise_groups(state: Propagation, step: Step) -> Tree:
    """GroupNorm: one group is a normalisation over all channels; of several, whole groups live or die, exactly."""
    assert step.shape is not None
    count = int(step.attrs["groups"])
    labels = _by_channel(state, step)
    if labels is None:
        return refuse(state, step, f"{step.op} reads channels on a dimension other than 1")
    channels = vector(labels, 1)
    if count == 1:
        state.normalised.append(distinct(channels))
    else:
        parts = channels.reshape(count, -1)
        state.unify(np.broadcast_to(parts[:, :1], parts.shape), parts, f"{step.op} groups it with fixed channels")
    for param in step.roles.values():
        state.weight_axis(param, 0, channels)
        state.follows.append((channels, step.module))
    return expand(labels, step.shape)
