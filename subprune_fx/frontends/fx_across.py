"""Convolutions along the channels (ECA's gates): a channel that is gone counts as zero for its neighbours.

A filter that slides over channels has no weight of its own for any of them, so nothing could make up for a neighbour
that is gone, and neighbours that move up would meet a tap that was not trained for them. So the channels that are left
are put back in their places between zeros, and of the result those are taken again. `mark` makes such convolutions
calls of `across`, which does that at once and is known to the op table; `unmark` spells it out in torch's own ops.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from subprune_fx.frontends.calls import Call, bind
from subprune_fx.frontends.fx_readers import reader
from subprune_fx.graph.step import Param
from subprune_fx.numerics.conv_reader import ConvReader


def across(
    input: Tensor,  # noqa: A002 - as torch calls it
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    kept: Sequence[int] | None = None,
    size: int | None = None,
) -> Tensor:
    """A convolution with one filter along the last dimension, which keeps its size.

    Args:
        input: Shape (..., 1, n).
        weight: Shape (1, 1, odd).
        bias: Shape (1,).
        dilation: Spacing of the taps.
        kept: Which positions of the original dimension the n are; None for all.
        size: Of the original dimension.
    """
    padding = _padding(weight.shape[-1], dilation)
    if kept is None or size is None:
        return functional.conv1d(input, weight, bias, padding=padding, dilation=dilation)
    whole = functional.pad(input, (0, 1))[..., _places(kept, size)]
    return functional.conv1d(whole, weight, bias, padding=padding, dilation=dilation)[..., list(kept)]


def _padding(taps: int, dilation: int) -> int:
    return dilation * (taps // 2)


def _places(kept: Sequence[int], size: int) -> list[int]:
    """By original position, where it is among those that are left, or behind them, where the zero is."""
    places = [len(kept)] * size
    for place, position in enumerate(kept):
        places[position] = place
    return places


def mark(graph: fx.GraphModule) -> None:
    """Turn convolutions that could slide over channels into calls of `across`, in `graph` itself."""
    for node in list(graph.graph.nodes):
        if node.op not in ("call_function", "call_method", "call_module"):
            continue
        call = bind(node, graph)
        found = _filter(call, graph)
        if found is None:
            continue
        with graph.graph.inserting_before(node):
            roles = [_parameter(graph, call, role) for role in ("weight", "bias")]
            same: dict[str, Any] = {"dilation": found.dilation[0], "kept": None, "size": None}
            made = graph.graph.call_function(across, (call.get("input"), *roles), same)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _filter(call: Call, graph: fx.GraphModule) -> ConvReader | None:
    """How a call reads its input, if it is a one-dimensional filter from one channel to one that keeps the size."""
    if call.name != "conv1d" or call.row is None:
        return None
    weight = call.get("weight")
    if isinstance(weight, fx.Node):
        weight = _parameters(graph).get(str(weight.target))
    if not isinstance(weight, nn.Parameter) or weight.shape[:2] != (1, 1) or weight.shape[-1] % 2 == 0:
        return None
    if any(isinstance(call.get(name), fx.Node) for name in ("stride", "padding", "dilation", "groups")):
        return None
    found = reader(call, Param("", tuple(weight.shape)))
    assert isinstance(found, ConvReader)
    around = _padding(weight.shape[-1], found.dilation[0])
    same = ConvReader(tuple(weight.shape[2:]), (1,), ((around, around),), found.dilation)
    return found if found == same else None


def _parameter(graph: fx.GraphModule, call: Call, role: str) -> fx.Node | None:
    value = call.get(role)
    return graph.graph.get_attr(f"{call.path}.{role}") if isinstance(value, Tensor) else value


def unmark(graph: fx.GraphModule) -> None:
    """Turn calls of `across` into calls of torch's own ops, in `graph` itself."""
    marked = [node for node in graph.graph.nodes if node.target is across]
    for node in marked:
        made = node.args[0]
        with graph.graph.inserting_before(node):
            for op, rest, named in _spelled(graph, node):
                made = graph.graph.call_function(op, (made, *rest), named)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
    if marked:
        graph.recompile()


def _spelled(graph: fx.GraphModule, node: fx.Node) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The ops that a call of `across` is, one after the other, each with its further arguments."""
    _, weight, bias = node.args
    told: Mapping[str, Any] = node.kwargs
    dilation, kept, size = told["dilation"], told["kept"], told["size"]
    assert isinstance(weight, fx.Node)
    taps = _parameters(graph)[str(weight.target)].shape[-1]
    around = {"padding": _padding(taps, dilation), "dilation": dilation}
    if kept is None:
        return [(torch.conv1d, (weight, bias), around)]
    return [
        (functional.pad, ((0, 1),), {}),
        (operator.getitem, ((Ellipsis, _places(kept, size)),), {}),
        (torch.conv1d, (weight, bias), around),
        (operator.getitem, ((Ellipsis, list(kept)),), {}),
    ]


def _parameters(graph: fx.GraphModule) -> dict[str, nn.Parameter]:
    return dict(graph.named_parameters(remove_duplicate=False))
