"""Ops that read or write at places: the channels pass where these are not told along them."""

from __future__ import annotations

import numpy as np

from subprune_fx.graph.combine import combine
from subprune_fx.graph.freezing import refuse
from subprune_fx.graph.labels import expand, varying
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Step, Tree


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
