"""Position by position: how the labels of elementwise operands combine, broadcasting included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subprune_fx.graph.labels import Labels, compact, constant, cut, distinct, expand, varying
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Step, Tree, leaves, shape_of

Shape = tuple[int, ...]


def elementwise(state: Propagation, step: Step) -> Tree:
    """Position by position, the operands' channels are one."""
    operands = [labels for operand in step.operands for labels in leaves(state.of(operand))]
    return combine(state, step.op, operands, shape_of(step))


def combine(state: Propagation, op: str, operands: Sequence[Labels], shape: Shape) -> Labels:
    """Labels of an elementwise result.

    An operand that has channels wherever the result has them is unified with the others. One that is broadcast over
    some of them leads or stays (`_partial`); one without channels keeps the dimensions that it spans uncut.

    Args:
        state: Where couplings are noted.
        op: For messages.
        operands: Labels of the operands.
        shape: Of the result.
    """
    statistics = [labels for labels in operands if is_statistic(state, labels)]
    plain = [labels for labels in operands if not is_statistic(state, labels)]
    if statistics:
        return _with_statistics(state, op, statistics, plain, shape)
    return _combine(state, op, plain, shape)


def _combine(state: Propagation, op: str, operands: Sequence[Labels], shape: Shape) -> Labels:
    wide = [labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape) for labels in operands]
    labelled = [labels for labels in wide if compact(labels).any()]
    if not labelled:
        return constant(shape)
    leading = [labels for labels in labelled if not state.loose(labels)] or labelled
    axes = set().union(*(varying(labels) for labels in leading))
    full = [labels for labels in leading if _spans(labels, shape, axes)]
    if not full:  # each of them is broadcast over channels of another
        full = [_leader(state, leading)]
        axes = set(varying(full[0]))
    # All are equal under the union; the plainest tells later rules most directly where the channels are.
    result = expand(min(full, key=lambda labels: len(varying(labels))), shape)
    for labels in wide:
        if not compact(labels).any():
            result = _uncut(state, op, result, _spanned(labels, axes))
        elif _spans(labels, shape, axes):
            state.unify(result, expand(labels, shape), f"{op} combines it with channels that cannot be pruned")
        else:
            result = _partial(state, op, result, labels, axes)
    return result


def _leader(state: Propagation, operands: Sequence[Labels]) -> Labels:
    """Of operands that are broadcast over each other's channels, the labels of those that can go.

    They are those of the operand that has most. Where none has more than elements of parameters, which follow what
    they meet, it is what they have in common (channels of encodings of rows and of columns), or the outermost (heads,
    and a mask of positions).
    """
    if not all(map(state.loose, operands)):
        return max(operands, key=lambda labels: distinct(compact(labels)).size)
    first = min(operands, key=lambda labels: min(varying(labels), default=labels.ndim))
    common = set(varying(first)).intersection(*map(varying, operands))
    return cut(first, set(varying(first)) - common) if common else first


def _partial(state: Propagation, op: str, result: Labels, labels: Labels, axes: set[int]) -> Labels:
    """An operand with channels that is broadcast over some of the result's.

    Where it has the outermost of them it is one value per unit (a gate per head): units live and die with it. Else
    it is shared by units (a scale of head channels common to all heads): it stays, and so do the dimensions it spans.
    """
    if min(axes) in varying(labels) and not state.loose(labels):
        state.unify(result, expand(labels, result.shape), f"{op} combines it with channels that cannot be pruned")
        return result
    state.freeze(labels, f"{op} broadcasts it over other channels")
    return _uncut(state, op, result, _spanned(labels, axes))


def _uncut(state: Propagation, op: str, result: Labels, axes: set[int]) -> Labels:
    """Nothing may be cut along `axes`, which an operand without channels spans."""
    channels = set(varying(result))
    if not axes & channels:
        return result
    if channels <= axes:
        state.freeze(result, f"{op} combines it with channels that cannot be pruned")
        return constant(result.shape)
    return state.tie(result, axes, f"{op} combines it with channels that cannot be pruned")


def _spanned(labels: Labels, axes: set[int]) -> set[int]:
    return {axis for axis in axes if labels.shape[axis] > 1}


def _spans(labels: Labels, shape: Shape, axes: set[int]) -> bool:
    return all(labels.shape[axis] == shape[axis] for axis in axes)


def is_statistic(state: Propagation, labels: Labels) -> bool:
    """Whether all of it is one statistic over channels."""
    if not state.statistics:
        return False
    found = distinct(compact(labels))
    return found.size == 1 and int(found[0]) in state.statistics


def _with_statistics(
    state: Propagation, op: str, statistics: Sequence[Labels], plain: Sequence[Labels], shape: Shape
) -> Labels:
    """A statistic over channels may meet numbers without channels, and the channels that it was taken over.

    The latter is what a normalisation does: its result has the channels' labels. A parameter that is not known to be
    theirs may turn out to be (flax multiplies its scale with the deviation first). Anything else freezes them.
    """
    sources = [state.statistics[int(compact(labels).flat[0])] for labels in statistics]
    channels = [labels for labels in plain if compact(labels).any()]
    same = all(state.same(sources[0], other) for other in sources[1:])
    if not channels:
        if same and all(labels.size == int(np.prod(shape)) for labels in statistics[:1]):
            return expand(statistics[0].reshape(shape), shape)
        return _misused(state, op, sources, shape)
    met = state.known(_combine(state, op, plain, shape))
    axes = set(varying(met))
    spread = all(
        not _spanned(labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape), axes) for labels in statistics
    )
    if same and spread and state.loose(met) and distinct(compact(met)).size == sources[0].size:
        state.scaled.append((sources[0], met, op))
    elif not (same and spread and state.same(sources[0], met)):
        _misused(state, op, sources, shape)
    return met


def _misused(state: Propagation, op: str, sources: Sequence[Labels], shape: Shape) -> Labels:
    for source in sources:
        state.misuse(source, op)
    return constant(shape)
