"""Recurrent cells, spelled out: the layers, gates and sums that a step consists of, each known to the op table.

    h = gru_cell(x, h, ...)   ->   r, z, n = ...; h = n + z * (h - n)

The exporter to ONNX spells them so, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from subprune_fx.frontends.calls import is_hooked, named

Weight = Tensor | None
_aten = torch.ops.aten
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor, v: Tensor, a: Weight, b: Weight) -> tuple[Tensor, Tensor]:
    i, f, g, o = (functional.linear(x, w, a) + functional.linear(h, v, b)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, w: Tensor, v: Tensor, a: Weight, b: Weight) -> Tensor:
    r, z, n = functional.linear(x, w, a).chunk(3, -1)
    s, y, m = functional.linear(h, v, b).chunk(3, -1)
    new = torch.tanh(n + torch.sigmoid(r + s) * m)
    return new + torch.sigmoid(z + y) * (h - new)


def _tanh(x: Tensor, h: Tensor, w: Tensor, v: Tensor, a: Weight, b: Weight) -> Tensor:
    return torch.tanh(functional.linear(x, w, a) + functional.linear(h, v, b))


def _relu(x: Tensor, h: Tensor, w: Tensor, v: Tensor, a: Weight, b: Weight) -> Tensor:
    return torch.relu(functional.linear(x, w, a) + functional.linear(h, v, b))


Spelled = Callable[..., Any]
_OPS: dict[Any, Spelled] = {
    _aten.lstm_cell.default: _lstm,
    _aten.gru_cell.default: _gru,
    _aten.rnn_tanh_cell.default: _tanh,
    _aten.rnn_relu_cell.default: _relu,
}
_NONLINEAR: dict[str, Spelled] = {"tanh": _tanh, "relu": _relu}


def spell_cells(graph: fx.GraphModule) -> None:
    """Do so in `graph` itself, with cells that are told their state."""
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            found = _called(node, graph)
            if found is None:
                continue
            spelled, read, state, weights = found
            inner = fx.symbolic_trace(spelled).graph
            given = [read, *_parts(graph.graph, state, spelled), *weights]
            holders = [holder for holder in inner.nodes if holder.op == "placeholder"]
            made: Any = graph.graph.graph_copy(inner, dict(zip(holders, given, strict=True)))
        _replace(node, made)
        graph.graph.erase_node(node)


def _called(node: fx.Node, graph: fx.GraphModule) -> tuple[Spelled, Any, Any, list[Any]] | None:
    """How a cell is spelled, its input, state and weights; None where a node is no call of one."""
    if node.target in _OPS and not node.kwargs:
        read, state, *weights = node.args
        return _OPS[node.target], read, state, [*weights, None, None][: len(_NAMES)]
    cell = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    given = named(node, ("input", "hx"))
    if type(cell) not in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) or given.get("hx") is None:
        return None
    assert isinstance(cell, nn.RNNCellBase)
    if is_hooked(cell):
        return None
    spelled = _NONLINEAR[cell.nonlinearity] if isinstance(cell, nn.RNNCell) else _CELLS[type(cell)]
    names = [None if getattr(cell, name) is None else f"{node.target}.{name}" for name in _NAMES]
    weights = [None if name is None else graph.graph.get_attr(name) for name in names]
    return spelled, given["input"], given["hx"], weights


_CELLS: dict[type[nn.Module], Spelled] = {nn.LSTMCell: _lstm, nn.GRUCell: _gru}


def _parts(graph: fx.Graph, state: Any, spelled: Spelled) -> list[Any]:
    if spelled is not _lstm:
        return [state]
    if isinstance(state, fx.Node):
        return [graph.call_function(operator.getitem, (state, place)) for place in range(2)]
    return list(state)


def _replace(node: fx.Node, made: Any) -> None:
    """What takes one part of a tuple takes that part; what takes all of it, the tuple."""
    if isinstance(made, fx.Node):
        node.replace_all_uses_with(made)
        return
    for user in list(node.users):
        if user.target is operator.getitem:
            place: Any = user.args[1]
            user.replace_all_uses_with(made[place])
            node.graph.erase_node(user)
            continue
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda used: made if used is node else used)
