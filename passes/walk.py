"""A network run on one batch after another, with what some of its nodes compute shown on the way.

An ONNX graph is run in a few sessions, as many as it takes to keep what is shown of a batch in memory. Node by node
MobileNetV2 takes eight times as long as in one session.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_fused import fusable
from subprune_fx.graph.step import leaves
from subprune_fx.heap import trim
from subprune_fx.passes.forward import Forward
from subprune_fx.passes.segment import Segment, chains, evaluated
from subprune_fx.sessions import give_back

ROOM = 1 << 26
"""Elements of a batch that are shown at a time (256 MB)."""

Show = Callable[[fx.Node, Any], None]


class _Leg(NamedTuple):
    """Nodes that are run together, which of their values are shown, and which nobody reads behind them."""

    segment: Segment
    shown: list[fx.Node]
    ended: list[fx.Node]


class Walk:
    """Runs a network, batch by batch."""

    def __init__(self, network: FxNetwork, shown: Collection[fx.Node] = ()) -> None:
        """Set up.

        Args:
            network: The analysed network.
            shown: Nodes whose values are shown.
        """
        self._network, self._forward, self._shown = network, Forward(network), frozenset(shown)
        self._nodes = list(network.graph_module.graph.nodes)
        self._in_sessions = any(fusable(node) for node in self._nodes)
        self._known = chains(network.graph_module.graph)
        self._legs: list[_Leg] = []

    def __call__(self, batch: Inputs, show: Show = lambda _node, _value: None) -> Any:
        """Run one batch.

        Args:
            batch: Inputs, (samples, ...).
            show: Told each shown node and its value.

        Returns:
            The network's output.
        """
        if not self._in_sessions:
            return _Shown(self._network, self._shown, show).run(batch)
        self._legs = self._legs or self._divided(len(batch))
        for node in self._shown & self._known.keys():
            show(node, evaluated(self._known[node], self._forward))
        environment = dict.fromkeys((node for node in self._nodes if node.op == "placeholder"), batch)
        for leg in self._legs:
            environment = leg.segment(environment)
            for node in leg.shown:
                show(node, environment[node])
            for node in leg.ended:
                environment.pop(node, None)
        return environment[self._nodes[-1]]

    def close(self) -> None:
        """Give the memory of the sessions back: least squares want it in larger pieces."""
        self._legs = []
        if self._in_sessions:
            give_back()
            trim()

    def _divided(self, samples: int) -> list[_Leg]:
        """Legs that show about `ROOM` of a batch each."""
        values = self._network.channels.values
        varying = (node for node in self._nodes if node not in self._known)
        example = next(labels.shape[0] for node in varying for labels in leaves(values[node.name]) if labels.ndim)
        legs: list[_Leg] = []
        start, total, shown = 0, 0, list[fx.Node]()
        for position, node in enumerate(self._nodes, 1):
            if node in self._shown and node not in self._known:
                shown.append(node)
                total += sum(labels.size for labels in leaves(values[node.name])) * samples // example
            if total < ROOM and position < len(self._nodes):
                continue
            inside = set(self._nodes[:position])
            ended = [one for one in shown if inside.issuperset(one.users)]
            segment = Segment(self._forward, self._nodes[start:position], self._known, kept=shown)
            legs.append(_Leg(segment, shown, ended))
            start, total, shown = position, 0, []
        return legs


class _Shown(Forward):
    """Node by node."""

    def __init__(self, network: FxNetwork, shown: Collection[fx.Node], show: Show) -> None:
        super().__init__(network)
        self._shown, self._show = shown, show

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n in self._shown:
            self._show(n, found)
        return found
