"""Recurrent layers: what they compute of their input is linear, so what they read is refitted like any layer.

    y, state = lstm(x, state)   ->   y, state = recurrent([x W', x W_reverse'], state, other weights)

Layers on top of each other become a call each, so that each may have a width of its own. What becomes of their state is
in `graph.recurrence`. `mark` spells layers so, and `unmark` brings back the ones that were there, which then read and
hold fewer channels, or one of each layer of a stack.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from subprune_fx.frontends.calls import is_hooked, named
from subprune_fx.frontends.fx_recurrent import of_input, recurrent

_EXPAND = torch.ops.aten.expand.default
_PLAIN = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
_OPS: dict[str, Any] = {kind: getattr(torch.ops.aten, kind).input for kind in ("lstm", "gru", *_PLAIN.values())}
_ARGUMENTS = 9
"""Of such an op on sequences that are not packed."""
_PACKING = ("pack_padded_sequence", "pack_sequence")


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
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            found = _called(node, graph)
            if found is None:
                continue
            made = _stacked(graph.graph, node, found) or {node: _spelled(graph.graph, found)}
        for old, new in made.items():
            old.replace_all_uses_with(new)
        _drop(graph.graph, node)


def _drop(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node and what is taken of it, which nobody reads."""
    for user in list(node.users):
        _drop(graph, user)
    graph.erase_node(node)


def _stacked(graph: fx.Graph, node: fx.Node, stack: _Layer) -> dict[fx.Node, fx.Node]:
    """Layers on top of each other as so many calls, each of which may become as narrow as it likes.

        y, h = lstm(x)   ->   y_0, h_0 = lstm_0(x); y_1, h_1 = lstm_1(y_0); ...

    Returns:
        What stands for what has been taken of the stack; nothing if it is better left as it is: where it begins with a
        state of its own, or all that it gives is handed on as one.
    """
    layers, directions = stack.told["layers"], 1 + stack.told["both"]
    lasts = _last_states(node, stack.told)
    if layers == 1 or lasts is None or not _zeros_of(stack.state, layers * directions):
        return {}
    each, made, read = len(stack.weights) // layers, list[fx.Node](), stack.read
    for layer in range(layers):
        own, told = stack.weights[layer * each : layer * each + each], {**stack.told, "layers": 1, "layer": layer}
        state = fx.map_arg(stack.state, lambda part: _narrow(graph, part, directions))
        made.append(_spelled(graph, _Layer(read, state, own, told)))
        read = graph.call_function(operator.getitem, (made[-1], 0))
    found = {user: read for user in node.users if user.args[1] == 0}
    for last, path in lasts.items():
        parts = made
        for place in path:
            parts = [graph.call_function(operator.getitem, (part, place)) for part in parts]
        found |= _taken(graph, last, parts, directions)
    return found


def _last_states(node: fx.Node, told: Mapping[str, Any]) -> dict[fx.Node, tuple[int, ...]] | None:
    """What is taken of a stack's last states, and where that is in what it gives; None where it is not taken apart."""
    found: dict[fx.Node, tuple[int, ...]] = {}
    pairs = told["path"] is not None and told["kind"] == "lstm"
    for user in node.users:
        inner = list(user.users) if pairs and user.args[1:] == (1,) else []
        if any(one.target is not operator.getitem for one in (user, *inner)):
            return None
        if user.args[1] != 0:
            found |= {one: (1, int(one.args[1])) for one in inner} if pairs else {user: (int(user.args[1]),)}  # type: ignore[arg-type]
    return found


def _taken(graph: fx.Graph, last: fx.Node, parts: Sequence[fx.Node], directions: int) -> dict[fx.Node, fx.Node]:
    """What stands for last states: those of a single layer where an index says which, otherwise all."""
    places = {user: _index(user) for user in last.users}
    if None in places.values():
        return {last: graph.call_function(torch.cat, (list(parts), 0))}
    count = len(parts) * directions
    pairs = {user: divmod(place % count, directions) for user, place in places.items() if place is not None}
    return {user: graph.call_function(operator.getitem, (parts[k], own)) for user, (k, own) in pairs.items()}


def _index(node: fx.Node) -> int | None:
    """Which of the first dimension a node takes, if that is all it does."""
    takes = node.target is operator.getitem or (node.target is torch.ops.aten.select.int and node.args[1] == 0)
    return node.args[-1] if takes and isinstance(node.args[-1], int) else None


def _zeros_of(state: Any, count: int) -> bool:
    """Whether a state is none, or one value for all of `count` layers and directions: any of them can begin with it."""
    parts = state if isinstance(state, (list, tuple)) else [state]
    return state is None or all(part.target is _EXPAND and part.args[1][0] == count for part in parts)


def _narrow(graph: fx.Graph, state: fx.Node, directions: int) -> fx.Node:
    """Such a value for one layer."""
    value, sizes = state.args
    return graph.call_function(_EXPAND, (value, [directions, *sizes[1:]]))  # type: ignore[misc, index]


def _spelled(graph: fx.Graph, layer: _Layer) -> fx.Node:
    weights, gates = list[Any](layer.weights), []
    for own in of_input(len(weights), layer.told):
        gates.append(graph.call_function(functional.linear, (layer.read, *(weights[place] for place in own))))
        for place in own:
            weights[place] = None
    return graph.call_function(recurrent, (gates, layer.state, weights), layer.told)


def is_marked(graph: fx.GraphModule) -> bool:
    """Whether there are layers that are spelled so."""
    return any(node.target is recurrent for node in graph.graph.nodes)


def unmark(graph: fx.GraphModule) -> None:
    """The opposite, in `graph` itself."""
    marked = [node for node in graph.graph.nodes if node.target is recurrent]
    alone: dict[tuple[str, int], list[str]] = {}
    for node in marked:
        path, layer = node.kwargs["path"], node.kwargs["layer"]
        if isinstance(path, str) and isinstance(layer, int) and (path, layer) not in alone:
            alone[path, layer] = _alone(graph, path, layer)
        with graph.graph.inserting_before(node):
            gates, state, weights = node.args
            node.replace_all_uses_with(_undone(graph, gates, state, weights, node.kwargs, alone))
    if marked:
        graph.graph.eliminate_dead_code()
        for path in {path for path, _ in alone}:
            graph.delete_submodule(path)
        graph.recompile()


def _undone(
    graph: fx.GraphModule,
    gates: Sequence[fx.Node],
    state: Any,
    weights: Sequence[Any],
    told: Mapping[str, Any],
    alone: Mapping[tuple[str, int], list[str]],
) -> fx.Node:
    """The call that was there, or that of one layer of a stack."""
    read: Any = gates[0].args[0]
    if told["path"] is not None:
        *before, name = alone.get((told["path"], told["layer"]), [told["path"]])
        for dropout in before:
            read = graph.graph.call_module(dropout, (read,))
        return graph.graph.call_module(name, (read,) if state is None else (read, state))
    whole = list(weights)
    for gate, own in zip(gates, of_input(len(whole), told), strict=True):
        for place, weight in zip(own, gate.args[1:], strict=True):
            whole[place] = weight
    numbers = (told["biased"], told["layers"], 0.0, False, told["both"], told["first"])
    return graph.graph.call_function(_OPS[told["kind"]], (read, state, whole, *numbers))


def _alone(graph: fx.GraphModule, path: str, layer: int) -> list[str]:
    """Make one layer of the stack at `path` a module of its own, and the dropout before it, if any; their names."""
    stack = graph.get_submodule(path)
    assert isinstance(stack, nn.RNNBase)
    inputs, units = (getattr(stack, f"weight_{which}_l{layer}").shape[1] for which in ("ih", "hh"))
    options = {"nonlinearity": stack.nonlinearity} if isinstance(stack, nn.RNN) else {}
    common = {"bias": stack.bias, "batch_first": stack.batch_first, "bidirectional": stack.bidirectional}
    made = type(stack)(inputs, units, device="meta", **common, **options)
    for own in made._flat_weights_names:  # noqa: SLF001 - no public name
        setattr(made, own, getattr(stack, own.replace("_l0", f"_l{layer}")))
    dropout = [_added(graph, f"{path}_dropout_l{layer}", nn.Dropout(stack.dropout))] if layer and stack.dropout else []
    return [*dropout, _added(graph, f"{path}_l{layer}", made)]


def _added(graph: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add a module, under another name where that is taken."""
    taken = dict(graph.named_modules())
    while name in taken:
        name += "_"
    graph.add_submodule(name, module.train(graph.training))
    return name


def _called(node: fx.Node, graph: fx.GraphModule) -> _Layer | None:
    """What a node is a call of, if it is one that can be spelled; packed sequences are not."""
    if node.op == "call_module":
        return _module(node, graph.get_submodule(str(node.target)), graph.graph)
    kinds = [kind for kind, op in _OPS.items() if op is node.target]
    if not kinds or len(node.args) != _ARGUMENTS:
        return None
    read, state, weights, biased, layers, _, _, both, first = node.args
    told = {"kind": kinds[0], "biased": biased, "layers": layers, "both": both, "first": first}
    told |= {"path": None, "layer": None}
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
        "layer": None,
    }
    return _Layer(read, given.get("hx"), weights, told)
