"""Products of two activations, attention among them: a head is a unit.

A product is described by the letters of its dimensions, as in `einsum`: those of both factors and of the result are
batch dimensions, those of both factors alone are summed over. Where channels spread over batch dimensions (heads), all
that a product reads or makes for one index of them lives and dies together: dropping a head is exact, and what it
contributed is folded into the layer that reads the rest. Without heads, channels that are summed over stay, since no
weight could make up for them; the others pass.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from subprune_fx.graph.combine import combine
from subprune_fx.graph.freezing import refuse
from subprune_fx.graph.labels import Labels, compact, constant, distinct, expand, varying, vector
from subprune_fx.graph.propagation import Consumer, Propagation
from subprune_fx.graph.step import Param, Step, Tree

Shape = tuple[int, ...]
Factor = tuple[Labels, str]


def product(state: Propagation, step: Step) -> Tree:
    """matmul, bmm, einsum and their likes: of two activations, or of one and a weight."""
    assert step.shape is not None
    equation: tuple[str, str, str] | None = step.attrs.get("letters")
    if equation is None:
        return refuse(state, step, f"{step.op} is not a product of two tensors")
    if "weight" in step.roles:
        return _weighted(state, step, *equation)
    left, right, *added = (state.of(operand) for operand in step.operands)
    first, second, out = equation
    made = _pair(state, step.op, (left, first), (right, second), out, step.shape)
    return combine(state, step.op, [made, *added], step.shape)


def _weighted(state: Propagation, step: Step, read: str, weight_letters: str, out: str) -> Tree:
    """One factor is a matrix of weights: a contraction whose input channels can be folded into others."""
    assert step.shape is not None
    weight, labels = step.roles["weight"], state.of(step.operands[0])
    summed = next(letter for letter in weight_letters if letter in read and letter not in out)
    free = next(letter for letter in weight_letters if letter not in read)
    data, axis = read.index(summed), out.index(free)
    stack = "".join(letter for letter in weight_letters if letter in read and letter in out)
    if stack:
        own = weight_letters.index(stack)
        if read.index(stack) in varying(labels) and data not in varying(labels):
            return _own_weights(state, step, read.index(stack), own, out.index(stack))
        labels = _level(state, step, labels, read.index(stack))
        state.weight_axis(weight, own, np.zeros(weight.shape[own], np.int64))
    others = set(varying(labels)) - {data}
    if others and state.loose(labels):  # a table of positions, say
        labels, others = state.tie(labels, others, f"{step.op} reads it at every position"), set()
    if others:
        return _per_head(state, step, data, axis)
    inputs = vector(labels, data)
    state.weight_axis(weight, weight_letters.index(summed), inputs)
    fresh = state.fresh(step.shape[axis], step.module, producer=True)
    made = state.weight_axis(weight, weight_letters.index(free), fresh)
    bias = step.roles.get("bias")
    if bias is not None:
        state.weight_axis(bias, 0, made)
    state.consumers.append(
        Consumer(
            name=step.name,
            module=step.module,
            weight=weight.name,
            bias=None if bias is None else bias.name,
            labels=inputs,
            outputs=made,
            axis=axis,
            data=data,
            groups=1,
            source=step.source,
            blocks=weight.shape[weight_letters.index(stack)] if stack else 1,
            shuffled=bool(step.attrs.get("shuffled")),
        )
    )
    return expand(made.reshape([-1 if d == axis else 1 for d in range(len(step.shape))]), step.shape)


def _level(state: Propagation, step: Step, labels: Labels, which: int) -> Labels:
    """All matrices of a stack keep the same slots, or it would not be rectangular."""
    if which not in varying(labels):
        return labels
    first = np.expand_dims(labels.take(0, which), which)
    state.unify(expand(first, labels.shape), labels, f"{step.op} shares it with a fixed slot of another matrix")
    return expand(first, labels.shape)


def _own_weights(state: Propagation, step: Step, which: int, own: int, out: int) -> Tree:
    """Heads, each with a matrix of its own: the matrices go with the heads, and are whole."""
    assert step.shape is not None
    weight, labels = step.roles["weight"], state.of(step.operands[0])
    if set(varying(labels)) != {which}:
        return refuse(state, step, f"{step.op} reads channels on a dimension it does not sum over")
    for number, size in enumerate(weight.shape):
        state.weight_axis(weight, number, vector(labels, which) if number == own else np.zeros(size, np.int64))
    return expand(vector(labels, which).reshape([-1 if d == out else 1 for d in range(len(step.shape))]), step.shape)


def _per_head(state: Propagation, step: Step, data: int, axis: int) -> Tree:
    """A matrix that every head is multiplied with: heads pass, what is inside them stays together."""
    assert step.shape is not None
    weight, labels = step.roles["weight"], state.of(step.operands[0])
    if data in varying(labels):
        labels = state.tie(labels, [data], f"{step.op} reads a head with fixed channels")
    for number, size in enumerate(weight.shape):
        state.weight_axis(weight, number, np.zeros(size, np.int64))
    first = np.moveaxis(labels.take([0], data), data, axis)
    return expand(first, step.shape)


def attention(state: Propagation, step: Step) -> Tree:
    """softmax(Q K') V with heads, if any, on batch dimensions; masks and biases are added to the scores."""
    assert step.shape is not None
    if any(isinstance(operand, Param) for operand in step.operands[:3]):
        return refuse(state, step, f"{step.op} of a parameter")
    query, key, value, *masks = (state.of(operand) for operand in step.operands)
    if step.attrs.get("grouped"):
        key, value = (np.repeat(part, query.shape[-3] // part.shape[-3], axis=-3) for part in (key, value))
    batch = string.ascii_uppercase[: query.ndim - 2]
    shape = (*step.shape[:-2], query.shape[-2], key.shape[-2])
    scores = _pair(state, step.op, (query, batch + "le"), (key, batch + "se"), batch + "ls", shape)
    scores = combine(state, step.op, [scores, *masks], shape)
    return _pair(state, step.op, (scores, batch + "ls"), (value, batch + "sv"), batch + "lv", step.shape)


def _pair(state: Propagation, op: str, left: Factor, right: Factor, out: str, shape: Shape) -> Labels:
    left, right = _followed(state, op, left, right, out), _followed(state, op, right, left, out)
    left, right = _headed(state, op, left, right, out), _headed(state, op, right, left, out)
    varies = [_letters(*factor) for factor in (left, right)]
    batch = set(left[1]) & set(right[1]) & set(out)
    heads = "".join(letter for letter in out if letter in batch & (varies[0] | varies[1]))
    sizes = dict(zip(out, shape, strict=True))
    if heads:
        return _heads(state, op, (left, right), heads, out, sizes)
    return _headless(state, op, (left, right), out, sizes)


def _followed(state: Propagation, op: str, factor: Factor, other: Factor, out: str) -> Factor:
    """A factor of parameters has heads where the other has some, and stays whole where the other has none."""
    labels, letters = factor
    heads = _letters(*other) & set(letters) & set(out)
    if not compact(labels).any() or not state.loose(labels) or heads:
        return factor
    state.freeze(labels, f"{op} reads all of it")
    return constant(labels.shape), letters


def _headed(state: Propagation, op: str, factor: Factor, other: Factor, out: str) -> Factor:
    """A factor stays whole where the other is as wide as its heads and has none: what cannot be cut is no head."""
    labels, letters = factor
    heads = _letters(labels, letters) & set(out) & set(other[1])
    wide = {letter for letter, size in zip(other[1], other[0].shape, strict=True) if size > 1}
    if not heads & wide or heads & _letters(other[0], other[1]):
        return factor
    state.freeze(labels, f"{op} reads it with heads that cannot be pruned")
    return constant(labels.shape), letters


def _letters(labels: Labels, letters: str) -> set[str]:
    return {letters[axis] for axis in varying(labels)}


def _heads(
    state: Propagation, op: str, factors: tuple[Factor, Factor], heads: str, out: str, sizes: Mapping[str, int]
) -> Labels:
    """One label per head, shared by both factors and the result."""
    found: list[Labels] = []
    for labels, letters in factors:
        if set(heads) & _letters(labels, letters):
            inside = {axis for axis, letter in enumerate(letters) if letter not in heads}
            tied = state.tie(labels, inside, f"{op} reads a head with fixed channels")
            found.append(_aligned(tied, letters, heads))
            continue
        state.freeze(labels, f"{op} reads it for every head")
    shape = tuple(sizes[letter] for letter in heads)
    for other in found[1:]:
        state.unify(expand(found[0], shape), expand(other, shape), f"{op} reads it with heads that cannot be pruned")
    result = next((labels for labels in found if compact(labels).any()), found[0])
    wide = expand(result, shape).reshape([sizes[letter] if letter in heads else 1 for letter in out])
    return expand(wide, [sizes[letter] for letter in out])


def _aligned(labels: Labels, letters: str, heads: str) -> Labels:
    """Labels that vary along heads only, with the dimensions `heads` in that order."""
    index = tuple(slice(None) if letter in heads else 0 for letter in letters)
    there = [letter for letter in letters if letter in heads]
    return labels[index].transpose([there.index(letter) for letter in heads])


def _common(state: Propagation, op: str, factor: Factor, other: Factor, out: str) -> Factor:
    """A factor whole that has no heads, if the other has some and channels inside them that both are summed over."""
    varies, others = _letters(*factor), _letters(*other)
    if varies & set(out) or not others & set(out) or not varies & others:
        return factor
    state.freeze(factor[0], f"{op} reads it for every head")
    return constant(factor[0].shape), factor[1]


def _headless(
    state: Propagation, op: str, factors: tuple[Factor, Factor], out: str, sizes: Mapping[str, int]
) -> Labels:
    """Channels that are summed over stay; those of one factor on a dimension of the result pass.

    Where that dimension has heads, what is summed over inside a head stays together. Of an outer product the factor
    that has more channels passes, and of two that have as many the second, which is where values stand. Beside heads,
    what all of them have in common (positions) stays.
    """
    passing: list[Factor] = []
    left, right = factors
    factors = _common(state, op, left, right, out), _common(state, op, right, left, out)
    for (labels, letters), other in zip(factors, reversed(factors), strict=True):
        varies = _letters(labels, letters)
        if varies & set(out) and not (varies - set(out)) & _letters(*other):
            inside = [axis for axis, letter in enumerate(letters) if letter in varies - set(out)]
            labels = state.tie(labels, inside, f"{op} sums over it and fixed channels")  # noqa: PLW2901
            varies &= set(out)
        if varies and varies <= set(out):
            passing.append((labels, letters))
        else:
            state.freeze(labels, f"{op} sums over it, or all of the result depends on it")
    shape = tuple(sizes[letter] for letter in out)
    wide = [factor for factor in passing if not _shares(factor, passing)]
    chosen = max(reversed(wide), key=lambda factor: distinct(compact(factor[0])).size, default=None)
    for factor in passing:
        if factor is not chosen:
            state.freeze(factor[0], f"{op} multiplies all of it with all of another")
    if chosen is not None:
        labels, letters = chosen
        index = tuple(slice(None) if letter in out else 0 for letter in letters)
        there = [letter for letter in letters if letter in out]
        kept = labels[index].transpose([there.index(letter) for letter in out if letter in there])
        return expand(kept.reshape([sizes[letter] if letter in there else 1 for letter in out]), shape)
    return constant(shape)


def _shares(factor: Factor, factors: Sequence[Factor]) -> bool:
    """Whether channels of a factor are another's too."""
    mine = compact(factor[0])
    return any(other is not factor and bool(np.isin(mine[mine > 0], compact(other[0])).any()) for other in factors)
