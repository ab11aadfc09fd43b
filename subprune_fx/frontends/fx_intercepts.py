"""Where an intercept goes: a constant that is added to what a contraction gives."""

from __future__ import annotations

import dataclasses

from torch import fx

from subprune_fx.frontends.calls import Call
from subprune_fx.frontends.fx_products import is_scaled
from subprune_fx.frontends.fx_tails import normalisable
from subprune_fx.frontends.fx_walker import Walker
from subprune_fx.graph.channels import ChannelGraph
from subprune_fx.graph.propagation import Consumer
from subprune_fx.graph.step import Param


@dataclasses.dataclass(frozen=True)
class Intercept:
    """The parameter that takes a constant added to a consumer's output.

    Attributes:
        name: Its name.
        sign: +1 for a bias, -1 for the running mean of a BatchNorm that alone reads the output.
        new: True where the consumer has no bias yet and gets one.
    """

    name: str
    sign: int
    new: bool = False


def intercepts(graph: fx.Graph, walker: Walker, channels: ChannelGraph) -> dict[str, Intercept]:
    """Where the intercept of each contraction would go, by node name; absent where it has no place."""
    nodes = {node.name: node for node in graph.nodes}
    found = {name: _intercept(nodes[name], walker.calls[name], walker, channels) for name in channels.contractions}
    return {name: place for name, place in found.items() if place is not None}


def _intercept(node: fx.Node, call: Call, walker: Walker, channels: ChannelGraph) -> Intercept | None:
    consumer = channels.contractions[node.name]
    if consumer.offset is not None or consumer.blocks > 1:  # each matrix of a stack would want one of its own
        return None
    if consumer.bias is not None:
        readers = channels.shared.get(consumer.bias)
        return Intercept(consumer.bias, 1) if readers in (None, channels.shared.get(consumer.weight)) else None
    users = list(node.users)
    norm, rank = walker.calls.get(users[0].name) if len(users) == 1 else None, channels.values[node.name].ndim
    settled = norm is not None and "batch" in norm.name and not norm.get("training", False)
    if settled and normalisable(consumer.axis, rank):
        mean = walker.roles[users[0].name].get("running_mean")
        if mean is not None and mean.name not in channels.shared:
            return Intercept(mean.name, -1)
    if norm is not None and norm.name == "add" and not is_scaled(norm):
        vector = _own_vector(users[0], walker, consumer)
        if vector is not None:
            return Intercept(vector, 1)
    return Intercept(f"{call.path}.bias", 1, new=True) if call.module is not None else None


def _own_vector(node: fx.Node, walker: Walker, consumer: Consumer) -> str | None:
    """The parameter along the consumer's outputs, read nowhere else, that a node adds: a bias by another name."""
    rank = walker.state.values[consumer.name].ndim
    wanted = tuple(consumer.outputs.size if d == consumer.axis % rank else 1 for d in range(rank))
    for used in node.all_input_nodes:
        param = walker.seen.trees[used]
        if not isinstance(param, Param) or walker.state.reads.get(param.name) != {node.name}:
            continue
        if param.order is None and wanted == (1,) * (rank - len(param.shape)) + param.shape:
            return param.name
    return None


def added(consumer: Consumer, found: Intercept | None) -> str | None:
    """The parameter that the reader of a consumer adds, where it takes the intercept."""
    bias = found is None or found.new or found.sign < 0 or found.name == consumer.bias
    return None if found is None or bias else found.name
