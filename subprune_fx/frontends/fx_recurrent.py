"""Recurrent layers as calls of an op whose input has met its weights already; `fx_recurrent_calls` spells them so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

State = Tensor | Sequence[Tensor]


def recurrent(
    gates: Sequence[Tensor],
    state: State | None,
    weights: Sequence[Tensor | None],
    *,
    kind: str,
    biased: bool,
    layers: int,
    both: bool,
    first: bool,
    path: str | None,
    layer: int | None,
) -> tuple[Tensor, Any]:
    """A recurrent layer whose input has met its weights already.

    Args:
        gates: By direction, the products, (time, batch, gates), (batch, time, gates) or (time, gates).
        state: Of before; None for zeros.
        weights: Of torch's op; None where they have gone into `gates`.
        kind: What torch calls its op.
        biased: Whether it has biases.
        layers: How many on top of each other.
        both: Whether there are two directions.
        first: Whether the batch is the first dimension.
        path: Name of the module, None for a call of the op.
        layer: Which layer of that module; None: all.
    """
    x, alone = torch.cat(list(gates), -1), gates[0].ndim == 2
    batch = 0 if first else 1
    if alone:
        x, state = x.unsqueeze(batch), _each(state, lambda part: part.unsqueeze(1))
    if state is None:
        state = _zeros(x, x.shape[batch], weights, layers * (1 + both), kind)
    told = {"biased": biased, "layers": layers, "both": both}
    whole = _with_identities(x, weights, [gate.shape[-1] for gate in gates], told)
    del layer
    made, *rest = getattr(torch, kind)(x, state, whole, biased, layers, 0.0, False, both, first)
    if path is None:
        return (made, *rest)
    if alone:
        made, rest = made.squeeze(batch), [part.squeeze(1) for part in rest]
    return made, tuple(rest) if kind == "lstm" else rest[0]


def own_matrices(node: fx.Node) -> list[tuple[str, str | None]]:
    """By direction of a call of `recurrent`, the matrix that the state meets and the bias of that, by their names.

    None of a stack of layers, nor where they are computed, or another call reads them too.
    """
    told: Mapping[str, Any] = node.kwargs
    weights: Any = node.args[2]
    if told["layers"] != 1:
        return []
    each = len(weights) // (1 + bool(told["both"]))
    pairs = [(weights[k + 1], weights[k + 3] if told["biased"] else None) for k in range(0, len(weights), each)]
    read = Counter(one.target for one in node.graph.nodes if one.op == "get_attr" for _ in one.users)
    for one in (one for pair in pairs for one in pair if one is not None):
        if not isinstance(one, fx.Node) or one.op != "get_attr" or read[one.target] != 1:
            return []
    return [(str(matrix.target), None if bias is None else str(bias.target)) for matrix, bias in pairs]


def previous(made: Tensor, state: State | None, told: Mapping[str, Any]) -> list[Tensor]:
    """By direction, the states that the steps of a layer begin with, (samples, steps, units).

    Args:
        made: What `recurrent` gives for each step.
        state: Its first state; None for zeros.
        told: Its keywords.
    """
    batch = 0 if told["first"] else 1
    alone = made.ndim == 2
    steps = (made.unsqueeze(batch) if alone else made).movedim(batch, 0)
    parts = steps.chunk(1 + told["both"], -1)
    held = state if state is None or isinstance(state, Tensor) else state[0]
    found = []
    for place, part in enumerate(parts):
        first = torch.zeros_like(part[:, :1]) if held is None else held[place].expand(len(part), -1)[:, None]
        found.append(torch.cat([part[:, 1:], first] if place else [first, part[:, :-1]], 1))
    return found


def of_input(count: int, told: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """By direction of the first layer, which of `count` weights meet the input: a matrix and, maybe, a bias."""
    directions = 1 + told["both"]
    each = count // (told["layers"] * directions)
    starts = range(0, each * directions, each)
    return [(start, start + 2) if told["biased"] else (start,) for start in starts]


def facts(node: fx.Node) -> dict[str, Any]:
    """What the op table's rule wants to know of a call of `recurrent`."""
    told: Mapping[str, Any] = node.kwargs
    weights: Any = node.args[2]
    there = [weight is not None for weight in weights]
    each = len(there) // (told["layers"] * (1 + told["both"]))
    present = [there[place : place + each] for place in range(0, len(there), each)]
    return {"kind": told["kind"], "both": told["both"], "present": present}


def multiply_adds(gates: Sequence[Tensor], weights: Sequence[Tensor | None]) -> int:
    """Of `recurrent`: each step of each sample meets all matrices."""
    count = sum(weight.numel() for weight in weights if weight is not None and weight.ndim == 2)
    return math.prod(gates[0].shape[:-1]) * count


def _each(state: State | None, change: Callable[[Tensor], Tensor]) -> State | None:
    if state is None:
        return None
    return change(state) if isinstance(state, Tensor) else tuple(change(part) for part in state)


def _zeros(x: Tensor, batch: int, weights: Sequence[Tensor | None], count: int, kind: str) -> State:
    own = weights[1]
    assert own is not None
    hidden = x.new_zeros(count, batch, own.shape[1])
    return (hidden, x.new_zeros(count, batch, own.shape[0] // 4)) if kind == "lstm" else hidden


def _with_identities(
    x: Tensor, weights: Sequence[Tensor | None], sizes: Sequence[int], told: Mapping[str, Any]
) -> list[Tensor | None]:
    """Matrices that hand on what each direction has of `x`, and biases of zero, where weights are missing."""
    found, parts = list(weights), torch.split(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), list(sizes))
    for part, (matrix, *bias) in zip(parts, of_input(len(weights), told), strict=True):
        found[matrix] = part.contiguous()
        for place in bias:
            found[place] = x.new_zeros(len(part))
    return found
