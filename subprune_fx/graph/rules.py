"""How labels pass through each kind of op: one function per `Kind`, listed in `RULES`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from subprune_fx.graph.combine import combine, is_statistic
from subprune_fx.graph.labels import Labels, along, compact, cut, distinct, expand, varying, vector
from subprune_fx.graph.optable import Kind, Resize
from subprune_fx.graph.products import attention, product
from subprune_fx.graph.propagation import Consumer, Propagation
from subprune_fx.graph.recurrence import recurrent
from subprune_fx.graph.statistics import along as softmax
from subprune_fx.graph.statistics import (
    by_channel,
    normalise,
    normalise_groups,
    per_tensor,
    reduce,
    refuse,
    statistic,
    tokens,
)
from subprune_fx.graph.step import Param, Step, Tree, leaves


def propagate(state: Propagation, step: Step) -> Tree:
    """Labels of the step's output; whatever it couples or freezes is noted in `state`.

    An op without a row, or whose rule does not apply here, freezes what reaches it: never a guess.
    """
    for operand in (*step.operands, *step.roles.values()):
        if isinstance(operand, Param):
            state.reads.setdefault(operand.name, set()).add(step.name)
    labelled = [leaf for operand in step.operands if not isinstance(operand, Param) for leaf in leaves(operand)]
    free = not any(compact(labels).any() for labels in labelled)
    spread = step.row is not None and step.row.kind is Kind.SPREAD
    if free and not step.roles and not _reads_params(step) and not step.attrs.get("opaque") and not spread:
        _pin_params(state, step)
        return step.blank
    if step.row is None:
        if step.attrs.get("opaque") or not all(map(state.loose, labelled)):
            state.unknown.append(step.name)
        known = "is used in a way that cannot be followed" if step.attrs.get("known") else "is not in the op table"
        return refuse(state, step, f"{step.op} {known}")
    kind, roles = step.row.kind, step.row.roles
    if state.statistics and kind is not Kind.ELEMENTWISE and not _carries(state, step, kind):
        step = dataclasses.replace(step, operands=tuple(_settled(state, step, tree) for tree in step.operands))
    if roles and any(isinstance(operand, Param) for operand in step.operands[1:]):
        return refuse(state, step, f"{step.op} takes a parameter of unknown meaning")
    try:
        return RULES[kind](state, step)
    except (IndexError, KeyError, TypeError, ValueError):
        return refuse(state, step, f"{step.op} is called in a way that is not understood")


def _carries(state: Propagation, step: Step, kind: Kind) -> bool:
    """Whether a statistic over channels still is one behind an op: moved, spread to no more, or reduced once more."""
    trees = [operand for operand in step.operands if not isinstance(operand, Param)]
    if len(trees) > 1:
        return False
    if kind is Kind.SPREAD:
        return step.shape is not None and all(math.prod(step.shape) == labels.size for labels in leaves(trees))
    reduced = kind in (Kind.STATISTIC, Kind.REDUCE)
    return kind in _CARRY or (reduced and all(is_statistic(state, labels) for labels in leaves(trees)))


_CARRY = (Kind.MOVE, Kind.PERMUTE, Kind.SHAPE)


def _settled(state: Propagation, step: Step, operand: Tree | Param) -> Tree | Param:
    """An operand without statistics; the channels they were taken over are frozen."""
    if isinstance(operand, Param) or operand is None:
        return operand
    if isinstance(operand, (tuple, list)):
        return type(operand)(_settled(state, step, item) for item in operand)
    if isinstance(operand, Mapping):
        return {key: _settled(state, step, item) for key, item in operand.items()}
    found = np.isin(compact(operand), list(state.statistics))
    if not found.any():
        return operand
    rest = np.where(found, 0, compact(operand))
    state.freeze(np.where(found, compact(operand), 0), f"{step.op} reads a statistic over them")
    return expand(rest, operand.shape)


def _reads_params(step: Step) -> bool:
    """A moving or elementwise op on a bare parameter: its labels start here."""
    return step.row is not None and step.row.kind in _STARTS and any(isinstance(o, Param) for o in step.operands)


def _pin_params(state: Propagation, step: Step) -> None:
    """Parameters of which an op without channels reads more than the size: they stay whole for it."""
    if step.row is not None and step.row.kind is Kind.SHAPE:
        return
    for operand in step.operands:
        if isinstance(operand, Param):
            state.pin(operand, f"{step.op} reads {operand.name} whole")


_STARTS = (
    Kind.SCATTER,
    Kind.SPREAD,
    Kind.SPATIAL,
    Kind.ALONG,
    Kind.MOVE,
    Kind.PERMUTE,
    Kind.JOIN,
    Kind.ELEMENTWISE,
    Kind.CHUNK,
    Kind.PAD,
)


def _shape(step: Step) -> tuple[int, ...]:
    if step.shape is None:
        message = f"{step.name}: {step.op} has no single output"
        raise ValueError(message)
    return step.shape


def _channels(labels: Labels, axis: int) -> Labels | None:
    """Labels along `axis` if they vary along no other dimension, else None."""
    axis %= labels.ndim
    return vector(labels, axis) if set(varying(labels)) <= {axis} else None


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
    labels, shape = state.of(step.operands[0]), _shape(step)
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


def elementwise(state: Propagation, step: Step) -> Tree:
    """Position by position, the operands' channels are one."""
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    return combine(state, step.op, operands, _shape(step))


def same(state: Propagation, step: Step) -> Tree:
    """The channels of the first operand."""
    return state.of(step.operands[0])


def contract(state: Propagation, step: Step) -> Tree:
    """Consume the labels of the input channels, make new ones for the output channels."""
    assert step.row is not None
    assert step.row.axes is not None
    axes, shape, weight = step.row.axes, _shape(step), step.roles.get("weight")
    labels = state.of(step.operands[0])
    if weight is None:
        state.unknown.append(step.name)
        return refuse(state, step, f"{step.op} has a computed weight")
    others = set(range(labels.ndim)) - {axes.data % labels.ndim}
    labels = tokens(state, labels, others, f"{step.op} sums tokens up")
    channels = set(varying(labels))
    groups = int(step.attrs.get("groups", 1))
    if 0 in channels and len(weight.shape) == labels.ndim and 1 < groups == labels.shape[axes.data]:
        return _by_head(state, step, labels)
    if state.loose(labels) or (others & channels and axes.data % labels.ndim in channels):
        labels = state.tie(labels, others, f"{step.op} reads it at every position")
        channels = set(varying(labels))
    if channels and axes.data % labels.ndim not in channels and groups == 1:
        if not _mixes(weight, labels):
            return _over_positions(state, step, labels)
        # They all stay, and what it makes of them is as prunable as what a first layer makes of an image.
        state.freeze(labels, f"{step.op} acts on a dimension that carries channels")
        labels = expand(np.zeros((1,) * labels.ndim, np.int64), labels.shape)
    if _channels(labels, axes.data) is None:
        return refuse(state, step, f"{step.op} reads channels on a dimension it does not sum over")
    inputs = vector(labels, axes.data)
    rule = _contract_rule(state, step, inputs)
    if rule in (_dense, _grouped) and weight.order is not None and len(weight.shape) > 2:
        return refuse(state, step, f"{step.op} reads its weight with dimensions in another order")
    made = rule(state, step, weight, inputs)
    bias = step.roles.get("bias")
    if bias is not None:
        state.weight_axis(bias, 0, made)
    for offset in step.operands[1:]:  # a computed bias
        state.unify(made, state.of(offset), f"{step.op} adds something of fixed size")
    return along(made, axes.data, shape)


def _mixes(weight: Param, labels: Labels) -> bool:
    """Whether a kernel spans several channels: those of a word's vector, say, which is one side of its picture."""
    return len(weight.shape) > 2 and any(weight.shape[d] != 1 for d in varying(labels))


def _over_positions(state: Propagation, step: Step, labels: Labels) -> Tree:
    """A layer that sums over positions of every channel alike (an MLP over tokens): the channels pass."""
    assert step.row is not None
    assert step.row.axes is not None
    shape, axis = _shape(step), step.row.axes.data % labels.ndim
    if (
        labels.ndim != len(shape)
        or shape[:axis] != labels.shape[:axis]
        or shape[axis + 1 :] != labels.shape[axis + 1 :]
    ):
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    _whole(state, step)
    return expand(labels.take([0], axis), shape)


def _whole(state: Propagation, step: Step) -> None:
    """The parameters of a layer that does the same to every channel lose nothing."""
    for param in step.roles.values():
        for number, size in enumerate(param.shape):
            state.weight_axis(param, number, np.zeros(size, np.int64))


def _by_head(state: Propagation, step: Step, labels: Labels) -> Tree:
    """Heads among the samples are filtered alike, channel by channel: they pass, what is inside them stays together."""
    tied = state.tie(labels, range(1, labels.ndim), f"{step.op} filters a head with fixed channels")
    _whole(state, step)
    return expand(tied[(slice(None), *(slice(0, 1),) * (labels.ndim - 1))], _shape(step))


ContractRule = Callable[[Propagation, Step, Param, Labels], Labels]


def _contract_rule(state: Propagation, step: Step, inputs: Labels) -> ContractRule:
    groups = int(step.attrs.get("groups", 1))
    if groups == 1:
        return _dense
    if groups == inputs.size:
        return _depthwise
    unit = state.components()[inputs.reshape(groups, -1)]
    together = (unit == unit[:, :1]).all() and distinct(unit).size > 1
    return _by_group if together or step.name in state.by_group else _grouped


def _dense(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    assert step.row is not None
    assert step.row.axes is not None
    axes = step.row.axes
    state.weight_axis(weight, axes.inputs, inputs)
    fresh = state.fresh(weight.shape[axes.outputs], step.module, producer=True)
    made = state.weight_axis(weight, axes.outputs, fresh)
    _consume(state, step, inputs, made)
    return made


def _consume(state: Propagation, step: Step, inputs: Labels, made: Labels) -> None:
    assert step.row is not None
    assert step.row.axes is not None
    bias = step.roles.get("bias")
    state.consumers.append(
        Consumer(
            name=step.name,
            module=step.module,
            weight=step.roles["weight"].name,
            bias=None if bias is None else bias.name,
            labels=inputs,
            outputs=made,
            axis=step.row.axes.data,
            data=step.row.axes.data,
            groups=int(step.attrs.get("groups", 1)),
            source=step.source,
            offset=step.offset,
        )
    )


def _depthwise(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """Each input channel has `multiplier` output channels of its own; they follow it.

    The weight is (outputs, 1, ...), of a transposed convolution (inputs, multiplier, ...).
    """
    assert step.row is not None
    assert step.row.axes is not None
    state.follows.append((inputs, step.module))
    state.depthwise.append(inputs)
    if step.row.axes.outputs == 0:
        return state.weight_axis(weight, 0, np.repeat(inputs, weight.shape[0] // inputs.size))
    return np.repeat(state.weight_axis(weight, 0, inputs), weight.shape[1])


def _by_group(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """Where all of a group lives or dies together (a GroupNorm reads it too), its outputs follow it."""
    assert step.row is not None
    assert step.row.axes is not None
    groups = int(step.attrs["groups"])
    state.follows.append((inputs, step.module))
    slots = state.tie(inputs.reshape(groups, -1), [1], f"{step.op} reads a group with fixed channels")
    if step.row.axes.outputs == 0:
        return state.weight_axis(weight, 0, np.repeat(slots[:, 0], weight.shape[0] // groups))
    state.weight_axis(weight, 0, inputs)
    return np.repeat(slots[:, 0], weight.shape[1])


def _grouped(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """All groups keep the same slots, or the weight would not be rectangular; see `channels.stuck`."""
    assert step.row is not None
    assert step.row.axes is not None
    axes, groups = step.row.axes, int(step.attrs["groups"])
    slots = inputs.reshape(groups, -1)
    state.unify(slots, np.broadcast_to(slots[:1], slots.shape), f"{step.op} shares it with a fixed slot of a group")
    outputs = weight.shape[axes.outputs] // (groups if axes.outputs == 0 else 1)
    made = state.fresh(outputs, step.module, producer=True)
    tiled = np.tile(made, groups)
    state.slots[step.name] = (inputs, made)
    _consume(state, step, inputs, tiled)
    if axes.outputs == 0:
        state.weight_axis(weight, axes.inputs, slots[0])
        state.weight_axis(weight, axes.outputs, tiled)
    else:
        state.weight_axis(weight, axes.inputs, inputs)
        state.weight_axis(weight, axes.outputs, made)
    return tiled


def bilinear(state: Propagation, step: Step) -> Tree:
    """What it reads stays, since no weight alone could make up for it; what it makes are new channels."""
    shape, weight = _shape(step), step.roles["weight"]
    for operand in step.operands:
        state.freeze(state.of(operand), f"{step.op} multiplies all of it with all of another")
    for axis, size in enumerate(weight.shape[1:], 1):
        state.weight_axis(weight, axis, np.zeros(size, np.int64))
    made = state.weight_axis(weight, 0, state.fresh(weight.shape[0], step.module, producer=True))
    if "bias" in step.roles:
        state.weight_axis(step.roles["bias"], 0, made)
    return along(made, -1, shape)


def lookup(state: Propagation, step: Step) -> Tree:
    """The columns of an embedding table are new channels."""
    shape, weight = _shape(step), step.roles.get("weight")
    for operand in step.operands:
        for labels in leaves(state.of(operand)):
            state.freeze(labels, f"{step.op} looks up with it")
    if weight is None:
        return refuse(state, step, f"{step.op} reads a computed table")
    made = state.fresh(weight.shape[1], step.module, producer=True)
    return along(state.weight_axis(weight, 1, made), -1, shape)


def per_channel(state: Propagation, step: Step) -> Tree:
    """Parameters have one entry per channel of dimension 1 (or a single one for all)."""
    assert step.row is not None
    alone = step.roles.get("weight")
    if step.row.roles == ("weight",) and alone is not None and math.prod(alone.shape) == 1:  # PReLU with one slope
        _whole(state, step)
        return state.of(step.operands[0])
    labels = by_channel(state, step)
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
    labels = by_channel(state, step)
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
    labels, shape = by_channel(state, step), _shape(step)
    if labels is None or len(shape) != 3 or labels.ndim != 4:
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    channels = vector(labels, 1)
    return along(np.repeat(channels, shape[1] // channels.size), 1, shape)


def fold(state: Propagation, step: Step) -> Tree:
    """The way back: all of a window lives or dies together."""
    labels, shape = by_channel(state, step), _shape(step)
    if labels is None or len(shape) != 4 or labels.ndim != 3:
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    windows = vector(labels, 1).reshape(shape[1], -1)
    state.unify(np.broadcast_to(windows[:, :1], windows.shape), windows, f"{step.op} adds fixed channels to it")
    return along(windows[:, 0], 1, shape)


def pad(state: Propagation, step: Step) -> Tree:
    """A padded position of a channel is that channel's; a padded channel is a fresh, droppable one."""
    labels, shape = state.of(step.operands[0]), _shape(step)
    pads = step.attrs.get("pads")
    if pads is None:
        return refuse(state, step, f"{step.op} pads by a computed amount")
    channels = varying(labels)
    for axis, amounts in enumerate(pads):
        size = labels.shape[axis]
        cut = slice(max(-amounts[0], 0), size - max(-amounts[1], 0))
        labels = labels[(*(slice(None),) * axis, cut)]
        counts = [max(amount, 0) for amount in amounts]
        if not any(counts):
            continue
        if axis not in channels:
            labels = expand(labels.take([0], axis), (*labels.shape[:axis], shape[axis], *labels.shape[axis + 1 :]))
            continue
        front, back = (compact_to(_padding(state, step, count, axis, labels), labels, axis) for count in counts)
        labels = np.concatenate([front, compact_to(labels, labels, axis), back], axis=axis)
    return expand(labels, shape)


def _padding(state: Propagation, step: Step, count: int, axis: int, labels: Labels) -> Labels:
    """`count` fresh channels before or after dimension `axis`, of each head its own."""
    sizes = [size if d in varying(labels) else 1 for d, size in enumerate(labels.shape)]
    sizes[axis] = count
    made = state.fresh(math.prod(sizes), step.name, producer=False).reshape(sizes)
    return expand(made, (*labels.shape[:axis], count, *labels.shape[axis + 1 :]))


def compact_to(side: Labels, like: Labels, axis: int) -> Labels:
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
    labels, shape = state.of(step.operands[0]), _shape(step)
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


def gather(state: Propagation, step: Step) -> Tree:
    """Channels on other dimensions pass; the indices have the same."""
    labels, index = (state.of(operand) for operand in step.operands)
    axis = int(step.attrs["dims"][0]) % labels.ndim
    if axis in varying(labels) or any(labels.shape[d] != index.shape[d] for d in varying(labels)):
        return refuse(state, step, f"{step.op} picks among channels")
    first = labels.take([0], axis)[tuple(slice(0, size) for size in (*index.shape,))]
    return combine(state, step.op, [expand(first, index.shape), index], index.shape)


def scatter(state: Propagation, step: Step) -> Tree:
    """What is written into a range has the channels of that range."""
    labels, written = (state.of(operand) for operand in step.operands)
    axis, part = step.attrs["range"]
    if written.ndim < labels.ndim:
        written = np.expand_dims(written, axis)
    inside = labels[(*(slice(None),) * (axis % labels.ndim), part)]
    if part.step not in (None, 1):
        return refuse(state, step, f"{step.op} writes every {part.step}th element")
    state.unify(inside, expand(written, inside.shape), f"{step.op} writes fixed channels into it")
    return labels


def write(state: Propagation, step: Step) -> Tree:
    """Channels on other dimensions pass; what is written has the same, and the places if they are told for each."""
    into, *others = (state.of(operand) for operand in step.operands)
    axis, taken = int(step.attrs["dims"][0]) % into.ndim, []
    for labels in (into, *others):
        if labels.ndim != into.ndim:
            state.freeze(labels, f"{step.op} writes to these places")
            continue
        tied = state.tie(labels, [axis], f"{step.op} writes fixed channels into it") if state.loose(labels) else labels
        sized = all(a == b for d, (a, b) in enumerate(zip(labels.shape, into.shape, strict=True)) if d != axis)
        if axis in varying(tied) or not sized:
            return refuse(state, step, f"{step.op} writes among channels")
        taken.append(tied.take([0], axis))
    return combine(state, step.op, taken, into.shape)


def put(state: Propagation, step: Step) -> Tree:
    """Channels on the dimensions behind those that the places are given for pass, of both."""
    into, *places, written = (state.of(operand) for operand in step.operands)
    for labels in places:
        state.freeze(labels, f"{step.op} writes to these places")
    front = int(step.attrs["indexed"])
    if state.loose(into):
        into = state.tie(into, range(front), f"{step.op} writes fixed channels into it")
    lead = max(0, written.ndim - (into.ndim - front))
    if {*varying(into)} & {*range(front)} or {*varying(written)} & {*range(lead)}:
        return refuse(state, step, f"{step.op} writes among channels")
    first = into[(*(slice(0, 1),) * front, ...)]
    return combine(state, step.op, [expand(first, into.shape), written[(0,) * lead]], into.shape)


def across(state: Propagation, step: Step) -> Tree:
    """One filter along the last dimension: the channels there pass, since those that are gone count as zero."""
    labels = state.of(step.operands[0])
    _whole(state, step)
    if varying(labels) in ((), (labels.ndim - 1,)) and not state.loose(labels):
        return expand(labels, _shape(step))
    return refuse(state, step, f"{step.op} acts on a dimension that carries channels")


def sizes(_state: Propagation, step: Step) -> Tree:
    """Sizes carry no labels."""
    return step.blank


RULES: dict[Kind, Callable[[Propagation, Step], Tree]] = {
    Kind.MOVE: move,
    Kind.SPREAD: spread,
    Kind.PERMUTE: move,
    Kind.JOIN: join,
    Kind.ELEMENTWISE: elementwise,
    Kind.CONTRACT: contract,
    Kind.PER_CHANNEL: per_channel,
    Kind.SPATIAL: spatial,
    Kind.SAME: same,
    Kind.BILINEAR: bilinear,
    Kind.PUT: put,
    Kind.RECURRENT: recurrent,
    Kind.UNFOLD: unfold,
    Kind.FOLD: fold,
    Kind.REDUCE: reduce,
    Kind.STATISTIC: statistic,
    Kind.ALONG: softmax,
    Kind.ACROSS: across,
    Kind.NORM: normalise,
    Kind.GROUP_NORM: normalise_groups,
    Kind.PRODUCT: product,
    Kind.ATTENTION: attention,
    Kind.PAD: pad,
    Kind.CHUNK: chunk,
    Kind.GATE: gate,
    Kind.DEAL: deal,
    Kind.LOOKUP: lookup,
    Kind.GATHER: gather,
    Kind.SCATTER: scatter,
    Kind.WRITE: write,
    Kind.SHAPE: sizes,
}
