"""Recurrent layers: what they compute of their input is linear, so what they read is refitted like any layer.

    y, state = lstm(x, state)   ->   y, state = recurrent([x W', x W_reverse'], state, other weights)

What becomes of their state is in `graph.recurrence`. `mark` spells layers so, and `unmark` brings back the ones that
were there, which then read and hold fewer channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from subprune_fx.frontends.calls import is_hooked, named

_PLAIN = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
_OPS: dict[str, Any] = {kind: getattr(torch.ops.aten, kind).input for kind in ("lstm", "gru", *_PLAIN.values())}
_ARGUMENTS = 9
"""Of such an op on sequences that are not packed."""
_PACKING = ("pack_padded_sequence", "pack_sequence")
State = Tensor | Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One call of a recurrent layer.

    Attributes:
        read: Its input.
        state: Its first state; None for zeros.
        weights: As torch's op takes them: by layer and direction, of the input, of the state, biases of both.
        told: Keyword arguments of `recurrent`.
    """

    read: fx.Node
    state: Any
    weights: Sequence[fx.Node]
    told: dict[str, Any]


def mark(graph: fx.GraphModule) -> None:
    """Spell recurrent layers as described, in `graph` itself."""
    create = graph.graph.call_function
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            found = _called(node, graph)
            if found is None:
                continue
            weights, gates = list[Any](found.weights), []
            for own in _of_input(len(weights), found.told):
                gates.append(create(functional.linear, (found.read, *(weights[place] for place in own))))
                for place in own:
                    weights[place] = None
            made = create(recurrent, (gates, found.state, weights), found.told)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def is_marked(graph: fx.GraphModule) -> bool:
    """Whether there are layers that are spelled so."""
    return any(node.target is recurrent for node in graph.graph.nodes)


def unmark(graph: fx.GraphModule) -> None:
    """The opposite, in `graph` itself."""
    marked = [node for node in graph.graph.nodes if node.target is recurrent]
    for node in marked:
        gates, state, weights = node.args
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(_undone(graph.graph, gates, state, weights, node.kwargs))
    if marked:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _undone(
    graph: fx.Graph, gates: Sequence[fx.Node], state: Any, weights: Sequence[Any], told: Mapping[str, Any]
) -> fx.Node:
    """The call that was there."""
    read = gates[0].args[0]
    if told["path"] is not None:
        return graph.call_module(told["path"], (read,) if state is None else (read, state))
    whole = list(weights)
    for gate, own in zip(gates, _of_input(len(whole), told), strict=True):
        for place, weight in zip(own, gate.args[1:], strict=True):
            whole[place] = weight
    numbers = (told["biased"], told["layers"], 0.0, False, told["both"], told["first"])
    return graph.call_function(_OPS[told["kind"]], (read, state, whole, *numbers))


def _of_input(count: int, told: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """By direction of the first layer, which of `count` weights meet the input: a matrix and, maybe, a bias."""
    directions = 1 + told["both"]
    each = count // (told["layers"] * directions)
    starts = range(0, each * directions, each)
    return [(start, start + 2) if told["biased"] else (start,) for start in starts]


def _called(node: fx.Node, graph: fx.GraphModule) -> _Layer | None:
    """What a node is a call of, if it is one that can be spelled; packed sequences are not."""
    if node.op == "call_module":
        return _module(node, graph.get_submodule(str(node.target)), graph.graph)
    kinds = [kind for kind, op in _OPS.items() if op is node.target]
    if not kinds or len(node.args) != _ARGUMENTS:
        return None
    read, state, weights, biased, layers, _, _, both, first = node.args
    told = {"kind": kinds[0], "biased": biased, "layers": layers, "both": both, "first": first, "path": None}
    return _Layer(read, state, weights, told)  # type: ignore[arg-type]


def _module(node: fx.Node, layer: nn.Module, graph: fx.Graph) -> _Layer | None:
    if type(layer) not in (nn.LSTM, nn.GRU, nn.RNN) or is_hooked(layer):
        return None
    assert isinstance(layer, nn.RNNBase)
    given = named(node, ("input", "hx"))
    read = given["input"]
    assert isinstance(read, fx.Node)
    if getattr(read.target, "__name__", "") in _PACKING:
        return None
    weights = [graph.get_attr(f"{node.target}.{name}") for name in layer._flat_weights_names]  # noqa: SLF001 - no public name
    told = {
        "kind": _PLAIN[layer.nonlinearity] if isinstance(layer, nn.RNN) else type(layer).__name__.lower(),
        "biased": layer.bias,
        "layers": layer.num_layers,
        "both": layer.bidirectional,
        "first": layer.batch_first,
        "path": str(node.target),
    }
    return _Layer(read, given.get("hx"), weights, told)


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
    """
    x, alone = torch.cat(list(gates), -1), gates[0].ndim == 2
    batch = 0 if first else 1
    if alone:
        x, state = x.unsqueeze(batch), _each(state, lambda part: part.unsqueeze(1))
    if state is None:
        state = _zeros(x, x.shape[batch], weights, layers * (1 + both), kind)
    told = {"biased": biased, "layers": layers, "both": both}
    whole = _with_identities(x, weights, [gate.shape[-1] for gate in gates], told)
    made, *rest = getattr(torch, kind)(x, state, whole, biased, layers, 0.0, False, both, first)
    if path is None:
        return (made, *rest)
    if alone:
        made, rest = made.squeeze(batch), [part.squeeze(1) for part in rest]
    return made, tuple(rest) if kind == "lstm" else rest[0]


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
    for part, (matrix, *bias) in zip(parts, _of_input(len(weights), told), strict=True):
        found[matrix] = part.contiguous()
        for place in bias:
            found[place] = x.new_zeros(len(part))
    return found
