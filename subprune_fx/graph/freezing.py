"""What stays where a rule does not apply: channels are frozen with a reason, parameters are kept whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from subprune_fx.graph.kinds import Kind
from subprune_fx.graph.labels import compact, expand
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Param, Step, Tree, leaves


def refuse(state: Propagation, step: Step, reason: str) -> Tree:
    """Freeze everything that reaches the step and label its output 0."""
    for operand in (*step.operands, *step.roles.values()):
        if isinstance(operand, Param):
            state.pin(operand, reason)
            continue
        for labels in leaves(operand):
            state.freeze(labels, reason)
    return step.blank


def without_statistics(state: Propagation, step: Step, operand: Tree | Param) -> Tree | Param:
    """An operand without statistics; the channels they were taken over are frozen."""
    if isinstance(operand, Param) or operand is None:
        return operand
    if isinstance(operand, (tuple, list)):
        return type(operand)(without_statistics(state, step, item) for item in operand)
    if isinstance(operand, Mapping):
        return {key: without_statistics(state, step, item) for key, item in operand.items()}
    found = np.isin(compact(operand), list(state.statistics))
    if not found.any():
        return operand
    rest = np.where(found, 0, compact(operand))
    state.freeze(np.where(found, compact(operand), 0), f"{step.op} reads a statistic over them")
    return expand(rest, operand.shape)


def pin_params(state: Propagation, step: Step) -> None:
    """Parameters of which an op without channels reads more than the size: they stay whole for it."""
    if step.row is not None and step.row.kind is Kind.SHAPE:
        return
    for operand in step.operands:
        if isinstance(operand, Param):
            state.pin(operand, f"{step.op} reads {operand.name} whole")


def keep_params(state: Propagation, step: Step) -> None:
    """The parameters of a layer that does the same to every channel lose nothing."""
    for param in step.roles.values():
        for number, size in enumerate(param.shape):
            state.weight_axis(param, number, np.zeros(size, np.int64))
