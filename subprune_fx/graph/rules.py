"""How labels pass through each kind of op: `propagate` hands a step to the rule of its `Kind`, one of `RULES`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from subprune_fx.graph.combine import elementwise, is_statistic
from subprune_fx.graph.contractions import bilinear, contract, lookup
from subprune_fx.graph.freezing import pin_params, refuse, without_statistics
from subprune_fx.graph.kinds import Kind
from subprune_fx.graph.labels import compact
from subprune_fx.graph.movement import chunk, deal, gate, join, move, pad, spread
from subprune_fx.graph.products import attention, product
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.recurrence import recurrent
from subprune_fx.graph.spatial import fold, normalise_groups, per_channel, spatial, unfold
from subprune_fx.graph.statistics import across, normalise, reduce, statistic
from subprune_fx.graph.statistics import along as softmax
from subprune_fx.graph.step import Param, Step, Tree, leaves
from subprune_fx.graph.whole import WHOLE
from subprune_fx.graph.writes import gather, put, scatter, write


def propagate(state: Propagation, step: Step) -> Tree:
    """Labels of the step's output; whatever it couples or freezes is noted in `state`.

    An op without a row, or whose rule does not apply here, freezes what reaches it: never a guess.
    """
    for operand in (*step.operands, *step.roles.values()):
        if isinstance(operand, Param):
            state.reads.setdefault(operand.name, set()).add(step.name)
    why = WHOLE.get(step.op) if step.row is None else None
    if why is not None:
        state.whole.setdefault(why, []).append(step.name)
    labelled = [leaf for operand in step.operands if not isinstance(operand, Param) for leaf in leaves(operand)]
    free = not any(compact(labels).any() for labels in labelled)
    spread = step.row is not None and step.row.kind is Kind.SPREAD
    if free and not step.roles and not _reads_params(step) and not step.attrs.get("opaque") and not spread:
        pin_params(state, step)
        return step.blank
    if step.row is None:
        if step.attrs.get("opaque") or not all(map(state.loose, labelled)):
            state.unknown.append(step.name)
        known = "is used in a way that cannot be followed" if step.attrs.get("known") else "is not in the op table"
        return refuse(state, step, why or f"{step.op} {known}")
    kind, roles = step.row.kind, step.row.roles
    if state.statistics and kind is not Kind.ELEMENTWISE and not _carries(state, step, kind):
        step = dataclasses.replace(
            step, operands=tuple(without_statistics(state, step, tree) for tree in step.operands)
        )
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


def _reads_params(step: Step) -> bool:
    """A moving or elementwise op on a bare parameter: its labels start here."""
    return step.row is not None and step.row.kind in _STARTS and any(isinstance(o, Param) for o in step.operands)


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


def same(state: Propagation, step: Step) -> Tree:
    """The channels of the first operand."""
    return state.of(step.operands[0])


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
