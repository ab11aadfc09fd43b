"""An fx graph's dependency graph, and what else the passes read off it: geometry, intercepts, spelled sizes, tails."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.fx_batch import numbers_of_more
from subprune_fx.frontends.fx_intercepts import Intercept, added, intercepts
from subprune_fx.frontends.fx_resize import survives
from subprune_fx.frontends.fx_sites import Site
from subprune_fx.frontends.fx_tails import Tail, tail
from subprune_fx.frontends.fx_walker import Walker
from subprune_fx.graph.channels import ChannelGraph, close, stuck
from subprune_fx.graph.step import leaves
from subprune_fx.numerics.readers import Reader
from subprune_fx.option_values import DEFAULT_PRECISION


@dataclasses.dataclass(frozen=True)
class FxNetwork:
    """A traced network with its dependency graph.

    Attributes:
        graph_module: The network.
        channels: Its dependency graph.
        readers: Geometry of every contraction, by node name.
        places: Where a contraction's intercept would go, by node name; absent where it has no place.
        sites: Nodes whose arguments may spell sizes.
        tails: What follows each contraction, by node name.
        precision: What its forward passes are computed in, see `subprune_fx.option_values.PRECISIONS`.
    """

    graph_module: fx.GraphModule
    channels: ChannelGraph
    readers: dict[str, Reader]
    places: dict[str, Intercept]
    sites: tuple[Site, ...]
    tails: dict[str, Tail]
    precision: str = DEFAULT_PRECISION

    @functools.cached_property
    def intercepts(self) -> dict[str, Intercept]:
        """The places in use: a bias of its own is new to a layer, and worth it only where channels are lost."""
        consumers = set(self.channels.consumers)
        return {name: place for name, place in self.places.items() if name in consumers or not place.new}

    @functools.cached_property
    def joint(self) -> dict[str, str]:
        """Contractions of one layer that is called at several places, each with the first of them, by node name.

        Those that read alike: one weight can be fitted to all of them.
        """
        found: dict[str, str] = {}
        for weight, readers in self.channels.shared.items():
            sites = [one for one in self.channels.contractions.values() if one.weight == weight]
            alike = {(self.readers[one.name], one.axis, one.data, one.blocks) for one in sites}
            if readers == {one.name for one in sites} and len(alike) == 1:
                found.update(dict.fromkeys(readers, sites[0].name))
        return found

    def layers(self, contractions: Iterable[str]) -> list[str]:
        """Of contractions, those of one layer that `joint` has only once."""
        return list(dict.fromkeys(self.joint.get(name, name) for name in contractions))


def describe(graph_module: fx.GraphModule, example: Inputs) -> FxNetwork:
    """Analyse `graph_module` by running it on `example` (first dimension = sample)."""
    walker, channels = _freest(graph_module, example)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    readers = {name: walker.readers[name] for name in channels.contractions}
    places = intercepts(graph_module.graph, walker, channels)
    shapes = {node: getattr(channels.values.get(node.name), "shape", None) for node in graph_module.graph.nodes}
    tails = {
        name: tail(nodes[name], walker.calls, walker.roles, shapes, consumer.axis, added(consumer, places.get(name)))
        for name, consumer in channels.contractions.items()
    }
    return FxNetwork(graph_module, channels, readers, places, tuple(walker.sites), tails)


def _freest(graph_module: fx.GraphModule, example: Inputs) -> tuple[Walker, ChannelGraph]:
    """Grouped convolutions whose channels would all stay lose whole groups, if then more can go."""
    more = numbers_of_more(graph_module, example)
    walker, channels = _walked(graph_module, example, more, frozenset())
    again = stuck(walker.state, channels)
    if again:
        other, found = _walked(graph_module, example, more, again)
        if found.loose > channels.loose:
            walker, channels = other, found
    return walker, channels


def _walked(
    graph_module: fx.GraphModule, example: Inputs, more: Mapping[str, Any], by_group: frozenset[str]
) -> tuple[Walker, ChannelGraph]:
    walker = Walker(graph_module, more, by_group)
    walker.walk(example)
    return walker, _verified(walker)


def _verified(walker: Walker) -> ChannelGraph:
    """Close the propagation; channels that some op cannot carry once others are gone are frozen, and all is redone."""
    while True:
        channels = close(walker.state)
        samples = channels.samples()
        broken = [site for site in walker.sites if not survives(site, channels, samples)]
        if not broken:
            return channels
        for site in broken:
            for labels in (*site.operands, *leaves(site.after)):
                walker.state.freeze(labels, f"{site.call.label} cannot be written for fewer channels")
