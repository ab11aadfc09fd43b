"""Ops that look at many elements of a dimension at once: reductions, normalisations, softmax.

Over positions they leave channels alone. Over some of the dimensions that carry channels (the channels of a head,
heads being on another dimension) what is looked at together lives and dies together, and all stays exact. Over all
channels the result is a statistic. A statistic that goes back to its channels normalises them: the smaller network
takes it over the channels that are left, so what it computes is not the masked original, but a normalisation of its
own; the sweep sees those true activations and refits every layer that reads them. A statistic that goes anywhere
else would change what no layer can be refitted for, and freezes the channels.
"""

from __future__ import annotations

import math

import numpy as np

from subprune_fx.graph.combine import combine
from subprune_fx.graph.freezing import keep_params, refuse
from subprune_fx.graph.labels import Labels, compact, distinct, expand, varying
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Step, Tree, leaves, per_tensor, shape_of


def over_dims(step: Step, rank: int) -> set[int]:
    """Dimensions the step works on, all of them if it does not say."""
    dims = step.attrs.get("dims")
    return set(range(rank)) if dims is None else {int(dim) % rank for dim in dims}


def reduce(state: Propagation, step: Step) -> Tree:
    """Products and their like: not over all channels."""
    labels = state.of(step.operands[0])
    if len(step.operands) > 1:  # of two tensors together: how alike they are
        operands = [state.of(operand) for operand in step.operands]
        labels = combine(state, step.op, operands, np.broadcast_shapes(*(one.shape for one in operands)))
    channels = set(varying(labels))
    if channels and channels <= over_dims(step, labels.ndim):
        return refuse(state, step, f"{step.op} reduces over channels")
    return _reduced(state, step, labels)


def statistic(state: Propagation, step: Step) -> Tree:
    """Means, sums, norms and extremes, to normalise by. The larger of two tensors is elementwise.

    Sums and norms grow with the number of channels: what they are divided by in the code stays, and the layers behind
    are refitted to what comes out.
    """
    if len(step.operands) > 1:
        return combine(state, step.op, [state.of(operand) for operand in step.operands], step.blank.shape)
    labels = state.of(step.operands[0])
    over = over_dims(step, labels.ndim)
    labels = tokens(state, labels, over, f"{step.op} normalises all of it alike")
    labels = _dealt_out(state, labels, over, f"{step.op} normalises all of it alike")
    channels = set(varying(labels))
    if channels and channels <= over:
        label = state.statistic(labels, step.name)
        return per_tensor(lambda shape: expand(np.full((1,) * len(shape), label), shape), step)
    return _reduced(state, step, labels)


def _reduced(state: Propagation, step: Step, labels: Labels) -> Tree:
    """Reduced dimensions vanish, or are left with size 1."""
    over = over_dims(step, labels.ndim)
    if over & set(varying(labels)):
        labels = state.tie(labels, over, f"{step.op} reduces over it and fixed channels")
    kept = labels[tuple(slice(0, 1) if d in over else slice(None) for d in range(labels.ndim))]
    left = kept.reshape([size for d, size in enumerate(kept.shape) if d not in over])
    return per_tensor(lambda shape: expand(kept if len(shape) == labels.ndim else left, shape), step)


def along(state: Propagation, step: Step) -> Tree:
    """Softmax and its like: fine across positions and within units, not across channels."""
    labels = state.of(step.operands[0])
    over, channels = over_dims(step, labels.ndim), set(varying(labels))
    if channels and channels <= over:
        return refuse(state, step, f"{step.op} mixes channels")
    if over & channels:
        labels = state.tie(labels, over, f"{step.op} mixes it with fixed channels")
    first = labels[tuple(slice(0, 1) if d in over else slice(None) for d in range(labels.ndim))]
    return per_tensor(lambda shape: expand(first, shape), step)


def across(state: Propagation, step: Step) -> Tree:
    """One filter along the last dimension: the channels there pass, since those that are gone count as zero."""
    labels = state.of(step.operands[0])
    keep_params(state, step)
    if varying(labels) in ((), (labels.ndim - 1,)) and not state.loose(labels):
        return expand(labels, shape_of(step))
    return refuse(state, step, f"{step.op} acts on a dimension that carries channels")


def normalise(state: Propagation, step: Step) -> Tree:
    """Layer and RMS normalisation over some dimensions, with parameters of their shape or without."""
    labels = state.of(step.operands[0])
    rank = labels.ndim
    over = set(range(rank - len(step.attrs["shape"]), rank)) if "shape" in step.attrs else over_dims(step, rank)
    if over & set(varying(labels)) and state.loose(labels):  # a table: what is normalised over is its channels
        labels = state.tie(labels, set(range(rank)) - over, f"{step.op} normalises all of it alike")
    labels = tokens(state, labels, over, f"{step.op} normalises all of it alike")
    labels = _dealt_out(state, labels, over, f"{step.op} normalises all of it alike")
    channels = set(varying(labels))
    if over & channels and not channels <= over:
        labels = state.tie(labels, over, f"{step.op} mixes it with fixed channels")
    elif over & channels:
        state.normalised.append(distinct(compact(labels)))
        for param in step.roles.values():
            weight = state.of(param)
            inner = labels[(*(0,) * (rank - weight.ndim), ...)]
            state.unify(inner, weight, f"{step.op} has fixed parameters for it")
    first = expand(labels, labels.shape)
    return first if step.shape is not None else (first, *leaves(step.blank)[1:])


def tokens(state: Propagation, labels: Labels, over: set[int], reason: str) -> Labels:
    """Tokens that were stacked have the same channels: the labels with all other dimensions cut to stride 0.

    Tokens are vectors along `over` that are equal as far as is known, or each all that a layer of its own has made;
    heads are parts of what one layer has made, and stay as they are.
    """
    others = set(range(labels.ndim)) - over
    if _on_both(labels, over, others):
        labels = state.known(labels)
    if not (_on_both(labels, over, others) and compact(labels).all()):
        return labels
    small = compact(labels).transpose([*sorted(others), *sorted(over)])
    vectors = small.reshape(-1, math.prod(small.shape[len(others) :]))
    maker = np.searchsorted([origin.start for origin in state.origins], vectors, side="right")
    if (maker != maker[:, :1]).any() or len(np.unique(vectors, axis=0)) != len(np.unique(maker[:, 0])):
        return labels
    return state.tie(labels, others, reason)


def _dealt_out(state: Propagation, labels: Labels, over: set[int], reason: str) -> Labels:
    """Channels that a shuffle has made positions of: the labels with all dimensions but `over` cut to stride 0.

    Such positions have the same channels again and again, while each head has its own.
    """
    others = set(range(labels.ndim)) - over
    if not _on_both(labels, over, others):
        return labels
    small = compact(labels).transpose([*sorted(others), *sorted(over)])
    vectors = small.reshape(math.prod(small.shape[: len(others)]), -1)
    if len(np.unique(vectors, axis=0)) == len(vectors):
        return labels
    return state.tie(labels, others, reason)


def _on_both(labels: Labels, some: set[int], others: set[int]) -> bool:
    channels = set(varying(labels))
    return bool(some & channels and others & channels)
