"""Ops that move elements: run on the labels, they say themselves where every channel goes.

What they repeat, add or cut needs a rule besides: what is wide for others follows them, a padded channel is a new one,
and parts that must stay equal keep the same channels.
"""

from __future__ import annotations

import math

import numpy as np

from subprune_fx.graph.freezing import refuse
from subprune_fx.graph.kinds import Resize
from subprune_fx.graph.labels import Labels, compact, cut, distinct, expand, varying, vector
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Step, Tree, leaves, shape_of


def move(state: Propagation, step: Step) -> Tree:
    """Run the very op on the labels of its first argument; what indexes it stays."""
    assert step.row is not None
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    if step.row.resize is not Resize.LIKE:
        for labels in operands[int(step.attrs.get("moved", len(operands))) :]:
            state.freeze(labels, f"{step.op} indexes with it")
    return step.run(operands)


def spread(state: Propagation, step: Step) -> Tree:
    """Run it on the labels. What has none (zeros to begin with, a mask) follows what it meets where it is repeated.

    So does a single channel, which stays. Not over samples: how many there are, the graph computes.
    """
    labels, shape = state.of(step.operands[0]), shape_of(step)
    found = distinct(compact(labels))
    if found.size > 1 or state.statistics.keys() & set(found.tolist()):
        return step.run([labels])
    state.freeze(labels, f"{step.op} repeats it for other channels")
    old = (1,) * (len(shape) - labels.ndim) + labels.shape
    wide = [d for d, size in enumerate(old) if size == 1 < shape[d] and d not in step.attrs["samples"]]
    count = math.prod(shape[d] for d in wide)
    if not 1 < count <= _MOST_SPREAD:
        return step.blank
    made = state.follower(count, step.name)
    return expand(made.reshape([size if d in wide else 1 for d, size in enumerate(shape)]), shape)


_MOST_SPREAD = 1 << 20
"""Elements that get a label each; a constant larger than that stays as it is."""


def join(state: Propagation, step: Step) -> Tree:
    """Run it on the labels. Joined along positions, all parts have the same channels, or nothing would be rectangular.

    Parameters (class tokens) follow.
    """
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    out = step.run(operands)
    (axis,) = step.attrs.get("dims") or (0,)
    axis %= out.ndim
    solid = [labels for labels in operands if not state.loose(labels)]
    if not any(varying(labels) for labels in solid) or any(axis in varying(labels) for labels in solid):
        return out
    first = next(labels for labels in solid if varying(labels))
    wide = expand(compact(cut(first, (axis,))), out.shape)
    state.unify(wide, out, f"{step.op} joins it with channels that cannot be pruned")
    return wide


def pad(state: Propagation, step: Step) -> Tree:
    """A padded position of a channel is that channel's; a padded channel is a fresh, droppable one."""
    labels, shape = state.of(step.operands[0]), shape_of(step)
    pads = step.attrs.get("pads")
    if pads is None:
        return refuse(state, step, f"{step.op} pads by a computed amount")
    channels = varying(labels)
    for axis, amounts in enumerate(pads):
        size = labels.shape[axis]
        inside = slice(max(-amounts[0], 0), size - max(-amounts[1], 0))
        labels = labels[(*(slice(None),) * axis, inside)]
        counts = [max(amount, 0) for amount in amounts]
        if not any(counts):
            continue
        if axis not in channels:
            labels = expand(labels.take([0], axis), (*labels.shape[:axis], shape[axis], *labels.shape[axis + 1 :]))
            continue
        front, back = (_compact_to(_padding(state, step, count, axis, labels), labels, axis) for count in counts)
        labels = np.concatenate([front, _compact_to(labels, labels, axis), back], axis=axis)
    return expand(labels, shape)


def _padding(state: Propagation, step: Step, count: int, axis: int, labels: Labels) -> Labels:
    """`count` fresh channels before or after dimension `axis`, of each head its own."""
    sizes = [size if d in varying(labels) else 1 for d, size in enumerate(labels.shape)]
    sizes[axis] = count
    made = state.fresh(math.prod(sizes), step.name, producer=False).reshape(sizes)
    return expand(made, (*labels.shape[:axis], count, *labels.shape[axis + 1 :]))


def _compact_to(side: Labels, like: Labels, axis: int) -> Labels:
    """`side` cut to size 1 along the dimensions (other than `axis`) where `like` has stride 0."""
    free = tuple(slice(0, 1) if d != axis and stride == 0 else slice(None) for d, stride in enumerate(like.strides))
    return side[free]


def chunk(state: Propagation, step: Step) -> Tree:
    """Equal parts stay equal: the same slot of every part lives or dies together. Unequal ones are cut by size."""
    parts = step.run(leaves(state.of(step.operands[0])))
    for part in parts[1:]:
        if part.shape == parts[0].shape == parts[-1].shape:
            state.unify(parts[0], part, f"{step.op} cuts it level with fixed channels")
    return parts


def gate(state: Propagation, step: Step) -> Tree:
    """A gated linear unit: the same slot of both halves lives or dies together."""
    labels, shape = state.of(step.operands[0]), shape_of(step)
    axis = int((step.attrs.get("dims") or (-1,))[0]) % labels.ndim
    if labels.strides[axis] == 0:
        return expand(labels.take([0], axis), shape)
    first, second = np.split(labels, 2, axis)
    state.unify(first, second, f"{step.op} gates it with fixed channels")
    return expand(first, shape)


def deal(state: Propagation, step: Step) -> Tree:
    """A channel shuffle: parts stay equal, as in `chunk`."""
    labels, count = state.of(step.operands[0]), int(step.attrs["groups"])
    if set(varying(labels)) - {1}:
        return refuse(state, step, f"{step.op} reads channels on a dimension other than 1")
    parts = vector(labels, 1).reshape(count, -1)
    state.unify(np.broadcast_to(parts[:1], parts.shape), parts, f"{step.op} deals it out with fixed channels")
    return step.run([labels])
