"""How labels pass through each kind of op: one function per `Kind`, listed in `RULES`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subprune_fx.graph.labels import Labels, along, compact, constant, expand, varying, vector
from subprune_fx.graph.optable import Kind
from subprune_fx.graph.propagation import Consumer, Propagation
from subprune_fx.graph.step import Param, Step, Tree, leaves


def propagate(state: Propagation, step: Step) -> Tree:
    """Labels of the step's output; whatever it couples or freezes is noted in `state`.

    An op without a row, or whose rule does not apply here, freezes what reaches it: never a guess.
    """
    labelled = [leaf for operand in step.operands if not isinstance(operand, Param) for leaf in leaves(operand)]
    makes = step.row is not None and step.row.kind in (Kind.CONTRACT, Kind.LOOKUP)
    free = not any(compact(labels).any() for labels in labelled)
    if free and not makes and not _reads_params(step):
        return step.blank
    if step.row is None:
        return refuse(state, step, f"{step.op} is not in the op table")
    return RULES[step.row.kind](state, step)


def refuse(state: Propagation, step: Step, reason: str) -> Tree:
    """Freeze everything that reaches the step and label its output 0."""
    for operand in step.operands:
        for labels in leaves(state.of(operand)):
            state.freeze(labels, reason)
    return step.blank


def _reads_params(step: Step) -> bool:
    """A moving or elementwise op on a bare parameter: its labels start here."""
    moves = step.row is not None and step.row.kind in (Kind.MOVE, Kind.ELEMENTWISE, Kind.CHUNK, Kind.PAD)
    return moves and any(isinstance(operand, Param) for operand in step.operands)


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
    """Run the very op on the labels."""
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    return step.run(operands)


def elementwise(state: Propagation, step: Step) -> Tree:
    """Position by position, the operands' channels are one.

    An operand that is broadcast along a dimension where another has channels couples nothing there; if it has
    channels of its own they are needed by all of the other's, and stay.
    """
    shape = _shape(step)
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    varies = [_aligned(varying(labels), labels, shape) for labels in operands]
    everywhere = set().union(*varies) if varies else set()
    result: Labels | None = None
    for labels in operands:
        spans = {
            axis for axis in range(len(shape)) if shape[axis] == 1 or _size_at(labels, axis, len(shape)) == shape[axis]
        }
        if not everywhere <= spans:
            state.freeze(labels, f"{step.op} broadcasts it over other channels")
            continue
        wide = expand(labels, shape)
        if result is not None:
            state.unify(result, wide, f"{step.op} combines it with channels that cannot be pruned")
        if result is None or not compact(result).any():
            result = wide
    return constant(shape) if result is None else result


def _aligned(axes: tuple[int, ...], labels: Labels, shape: tuple[int, ...]) -> set[int]:
    return {axis + len(shape) - labels.ndim for axis in axes}


def _size_at(labels: Labels, axis: int, rank: int) -> int:
    lead = rank - labels.ndim
    return int(labels.shape[axis - lead]) if axis >= lead else 1


def contract(state: Propagation, step: Step) -> Tree:
    """Consume the labels of the input channels, make new ones for the output channels."""
    assert step.row is not None
    assert step.row.axes is not None
    axes, shape, weight = step.row.axes, _shape(step), step.roles.get("weight")
    labels = state.of(step.operands[0])
    if weight is None or isinstance(step.operands[0], Param):
        return refuse(state, step, f"{step.op} has a computed weight")
    if _channels(labels, axes.data) is None:
        return refuse(state, step, f"{step.op} reads channels on a dimension it does not sum over")
    inputs = vector(labels, axes.data)
    groups = int(step.attrs.get("groups", 1))
    made = _contract_rule(groups, inputs, axes.outputs)(state, step, weight, inputs)
    bias = step.roles.get("bias")
    if bias is not None:
        state.weight_axis(bias, 0, made)
    return along(made, axes.data, shape)


ContractRule = Callable[[Propagation, Step, Param, Labels], Labels]


def _contract_rule(groups: int, inputs: Labels, output_axis: int) -> ContractRule:
    if groups == 1:
        return _dense
    if groups == inputs.size and output_axis == 0:
        return _depthwise
    return _grouped


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
            groups=int(step.attrs.get("groups", 1)),
        )
    )


def _depthwise(state: Propagation, _step: Step, weight: Param, inputs: Labels) -> Labels:
    """Each input channel has `multiplier` output channels of its own; they follow it."""
    made = np.repeat(inputs, weight.shape[0] // inputs.size)
    return state.weight_axis(weight, 0, made)


def _grouped(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """All groups must keep the same slots, or the weight would not be rectangular."""
    assert step.row is not None
    assert step.row.axes is not None
    axes, groups = step.row.axes, int(step.attrs["groups"])
    slots = inputs.reshape(groups, -1)
    state.unify(slots, np.broadcast_to(slots[:1], slots.shape), f"{step.op} shares it with a fixed slot of a group")
    outputs = weight.shape[axes.outputs] // (groups if axes.outputs == 0 else 1)
    made = state.fresh(outputs, step.module, producer=True)
    tiled = np.tile(made, groups)
    _consume(state, step, inputs, tiled)
    if axes.outputs == 0:
        state.weight_axis(weight, axes.inputs, slots[0])
        state.weight_axis(weight, axes.outputs, tiled)
    else:
        state.weight_axis(weight, axes.inputs, inputs)
        state.weight_axis(weight, axes.outputs, made)
    return tiled


def lookup(state: Propagation, step: Step) -> Tree:
    """The columns of an embedding table are new channels."""
    shape, weight = _shape(step), step.roles.get("weight")
    if weight is None:
        return refuse(state, step, f"{step.op} reads a computed table")
    made = state.fresh(weight.shape[1], step.module, producer=True)
    return along(state.weight_axis(weight, 1, made), -1, shape)


def per_channel(state: Propagation, step: Step) -> Tree:
    """Parameters have one entry per channel of dimension 1 (or a single one for all)."""
    labels = state.of(step.operands[0])
    channels = _channels(labels, 1)
    if channels is None:
        return refuse(state, step, f"{step.op} reads channels on a dimension other than 1")
    for param in step.roles.values():
        if param.shape == channels.shape:
            state.weight_axis(param, 0, channels)
    return expand(labels, _shape(step))


def spatial(state: Propagation, step: Step) -> Tree:
    """Batch and channel dimensions pass; positions are the op's own business."""
    labels, shape = state.of(step.operands[0]), _shape(step)
    if set(varying(labels)) - {0, 1} or labels.shape[:2] != shape[:2]:
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    return expand(labels[(slice(None), slice(None), *(slice(0, 1) for _ in shape[2:]))], shape)


def reduce(state: Propagation, step: Step) -> Tree:
    """Reduced dimensions vanish; channels on one of them are all needed."""
    labels, shape = state.of(step.operands[0]), _shape(step)
    dims = step.attrs.get("dims")
    over = set(range(labels.ndim)) if dims is None else {int(d) % labels.ndim for d in dims}
    if over & set(varying(labels)):
        return refuse(state, step, f"{step.op} reduces over channels")
    kept = labels[tuple(slice(0, 1) if d in over else slice(None) for d in range(labels.ndim))]
    if len(shape) != labels.ndim:
        kept = kept.reshape([size for d, size in enumerate(kept.shape) if d not in over])
    return expand(kept, shape)


def mixing(state: Propagation, step: Step) -> Tree:
    """Softmax and its like: fine across positions, not across channels."""
    labels = state.of(step.operands[0])
    dims = {int(d) % labels.ndim for d in step.attrs.get("dims") or (step.attrs.get("default", -1),)}
    if dims & set(varying(labels)):
        return refuse(state, step, f"{step.op} mixes channels")
    return expand(labels, _shape(step))


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
        front, back = (compact_to(_padding(state, step, count, axis, labels.shape), labels, axis) for count in counts)
        labels = np.concatenate([front, compact_to(labels, labels, axis), back], axis=axis)
    return expand(labels, shape)


def _padding(state: Propagation, step: Step, count: int, axis: int, shape: tuple[int, ...]) -> Labels:
    """`count` fresh channels before or after dimension `axis` of a tensor of `shape`."""
    made = state.fresh(count, step.name, producer=False)
    return along(made, axis, (*shape[:axis], count, *shape[axis + 1 :]))


def compact_to(side: Labels, like: Labels, axis: int) -> Labels:
    """`side` cut to size 1 along the dimensions (other than `axis`) where `like` has stride 0."""
    free = tuple(slice(0, 1) if d != axis and stride == 0 else slice(None) for d, stride in enumerate(like.strides))
    return side[free]


def chunk(state: Propagation, step: Step) -> Tree:
    """Equal parts stay equal: the same slot of every part lives or dies together."""
    parts = step.run(leaves(state.of(step.operands[0])))
    for part in parts[1:]:
        if part.shape != parts[0].shape and set(varying(part)):
            return refuse(state, step, f"{step.op} cuts unequal parts")
        if part.shape == parts[0].shape:
            state.unify(parts[0], part, f"{step.op} cuts it level with fixed channels")
    return parts


def sizes(_state: Propagation, step: Step) -> Tree:
    """Sizes carry no labels."""
    return step.blank


RULES: dict[Kind, Callable[[Propagation, Step], Tree]] = {
    Kind.MOVE: move,
    Kind.ELEMENTWISE: elementwise,
    Kind.CONTRACT: contract,
    Kind.PER_CHANNEL: per_channel,
    Kind.SPATIAL: spatial,
    Kind.REDUCE: reduce,
    Kind.ALONG: mixing,
    Kind.PAD: pad,
    Kind.CHUNK: chunk,
    Kind.LOOKUP: lookup,
    Kind.SHAPE: sizes,
}
