"""Layers that sum over their input channels with a weight: what they read is consumed, what they make is new.

Of a grouped convolution the groups say which inputs an output follows, or which it shares a slot with. A layer that
sums over positions, of every channel or head alike, lets the channels pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subprune_fx.graph.freezing import keep_params, refuse
from subprune_fx.graph.kinds import Axes
from subprune_fx.graph.labels import Labels, along, distinct, expand, varying, vector
from subprune_fx.graph.propagation import Consumer, Propagation
from subprune_fx.graph.statistics import tokens
from subprune_fx.graph.step import Param, Step, Tree, leaves, shape_of


def contract(state: Propagation, step: Step) -> Tree:
    """Consume the labels of the input channels, make new ones for the output channels."""
    axes, shape, weight = _axes(step), shape_of(step), step.roles.get("weight")
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


def _axes(step: Step) -> Axes:
    """Where the contraction has its channels."""
    assert step.row is not None
    assert step.row.axes is not None
    return step.row.axes


def _channels(labels: Labels, axis: int) -> Labels | None:
    """Labels along `axis` if they vary along no other dimension, else None."""
    axis %= labels.ndim
    return vector(labels, axis) if set(varying(labels)) <= {axis} else None


def _mixes(weight: Param, labels: Labels) -> bool:
    """Whether a kernel spans several channels: those of a word's vector, say, which is one side of its picture."""
    return len(weight.shape) > 2 and any(weight.shape[d] != 1 for d in varying(labels))


def _over_positions(state: Propagation, step: Step, labels: Labels) -> Tree:
    """A layer that sums over positions of every channel alike (an MLP over tokens): the channels pass."""
    shape, axis = shape_of(step), _axes(step).data % labels.ndim
    if (
        labels.ndim != len(shape)
        or shape[:axis] != labels.shape[:axis]
        or shape[axis + 1 :] != labels.shape[axis + 1 :]
    ):
        return refuse(state, step, f"{step.op} acts on a dimension that carries channels")
    keep_params(state, step)
    return expand(labels.take([0], axis), shape)


def _by_head(state: Propagation, step: Step, labels: Labels) -> Tree:
    """Heads among the samples are filtered alike, channel by channel: they pass, what is inside them stays together."""
    tied = state.tie(labels, range(1, labels.ndim), f"{step.op} filters a head with fixed channels")
    keep_params(state, step)
    return expand(tied[(slice(None), *(slice(0, 1),) * (labels.ndim - 1))], shape_of(step))


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
    axes = _axes(step)
    state.weight_axis(weight, axes.inputs, inputs)
    fresh = state.fresh(weight.shape[axes.outputs], step.module, producer=True)
    made = state.weight_axis(weight, axes.outputs, fresh)
    _consume(state, step, inputs, made)
    return made


def _consume(state: Propagation, step: Step, inputs: Labels, made: Labels) -> None:
    bias = step.roles.get("bias")
    state.consumers.append(
        Consumer(
            name=step.name,
            module=step.module,
            weight=step.roles["weight"].name,
            bias=None if bias is None else bias.name,
            labels=inputs,
            outputs=made,
            axis=_axes(step).data,
            data=_axes(step).data,
            groups=int(step.attrs.get("groups", 1)),
            source=step.source,
            offset=step.offset,
        )
    )


def _depthwise(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """Each input channel has `multiplier` output channels of its own; they follow it.

    The weight is (outputs, 1, ...), of a transposed convolution (inputs, multiplier, ...).
    """
    state.follows.append((inputs, step.module))
    state.depthwise.append(inputs)
    if _axes(step).outputs == 0:
        return state.weight_axis(weight, 0, np.repeat(inputs, weight.shape[0] // inputs.size))
    return np.repeat(state.weight_axis(weight, 0, inputs), weight.shape[1])


def _by_group(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """Where all of a group lives or dies together (a GroupNorm reads it too), its outputs follow it."""
    groups = int(step.attrs["groups"])
    state.follows.append((inputs, step.module))
    slots = state.tie(inputs.reshape(groups, -1), [1], f"{step.op} reads a group with fixed channels")
    if _axes(step).outputs == 0:
        return state.weight_axis(weight, 0, np.repeat(slots[:, 0], weight.shape[0] // groups))
    state.weight_axis(weight, 0, inputs)
    return np.repeat(slots[:, 0], weight.shape[1])


def _grouped(state: Propagation, step: Step, weight: Param, inputs: Labels) -> Labels:
    """All groups keep the same slots, or the weight would not be rectangular; see `channels.stuck`."""
    axes, groups = _axes(step), int(step.attrs["groups"])
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
    shape, weight = shape_of(step), step.roles["weight"]
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
    shape, weight = shape_of(step), step.roles.get("weight")
    for operand in step.operands:
        for labels in leaves(state.of(operand)):
            state.freeze(labels, f"{step.op} looks up with it")
    if weight is None:
        return refuse(state, step, f"{step.op} reads a computed table")
    made = state.fresh(weight.shape[1], step.module, producer=True)
    return along(state.weight_axis(weight, 1, made), -1, shape)
