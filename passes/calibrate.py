"""One run of the original network over the calibration inputs: second moments of what consumers read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.numerics.collect import Collector
from subprune_fx.numerics.packed import Waiting
from subprune_fx.numerics.readers import LinearReader, Reader
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.loops import loops
from subprune_fx.passes.segment import operand
from subprune_fx.passes.walk import Walk
from subprune_fx.team import ALONE, Team


def calibrate(
    network: FxNetwork,
    batches: Sequence[Inputs],
    tick: Tick | None = None,
    team: Team = ALONE,
    consumers: Collection[str] | None = None,
) -> tuple[Waiting, list[Any]]:
    """Moments of consumers' inputs in the original network, and the network's outputs.

    Args:
        network: The analysed network.
        batches: Calibration inputs.
        tick: Told (batches done, batches) after each one.
        team: Who has the other batches.
        consumers: Names of those that moments are wanted of; None: all.

    Returns:
        Moments by consumer name, of all batches (without targets: one that is linear in the input follows from them),
        and one output per own batch.
    """
    named = network.channels.consumers
    wanted = [name for name in named if consumers is None or name in consumers]
    recorder = _Recorder(network, wanted, team.batches(batches))
    with closing(Walk(network, recorder.reading.keys())) as walk:
        outputs = _outputs(partial(walk, show=recorder.show), batches, tick)
    return recorder.moments(team), outputs


def run(network: FxNetwork, batches: Sequence[Inputs], tick: Tick | None = None) -> list[Any]:
    """The network's outputs, one per batch; arguments as for `calibrate`."""
    with closing(Walk(network)) as walk:
        return _outputs(walk, batches, tick)


def _outputs(walk: Callable[[Inputs], Any], batches: Sequence[Inputs], tick: Tick | None) -> list[Any]:
    outputs = []
    with torch.no_grad():
        for done, batch in enumerate(batches, 1):
            outputs.append(walk(batch))
            if tick is not None:
                tick(done, len(batches))
    return outputs


class _Recorder:
    """Collects what every consumer reads; consumers that read the same in the same way share it.

    So do the calls of one layer: its rows are those of all of them. Recurrent layers read their own states.

    Attributes:
        reading: By node, consumers that read it, each in another way.
    """

    def __init__(self, network: FxNetwork, consumers: Sequence[str], batches: float) -> None:
        sources = {name: network.channels.contractions[name].source for name in consumers}
        reads: dict[str, tuple[bool, str, Reader]] = {
            name: (name in network.joint, network.joint.get(name, sources[name]), network.readers[name])
            for name in consumers
        }
        first = {read: name for name, read in reversed(reads.items())}
        self.shared = {name: first[read] for name, read in reads.items()}
        self.reading: dict[fx.Node, list[str]] = {}
        nodes = {node.name: node for node in network.graph_module.graph.nodes}
        for node in nodes.values():
            if node.name in sources:
                into = self.reading.setdefault(operand(node, sources[node.name]), [])
                into += {self.shared[node.name]} - {*into}
        times = Counter(name for names in self.reading.values() for name in names)
        self.collectors = {name: Collector(reader, batches * times[name]) for (_, _, reader), name in first.items()}
        for loop in loops(network):
            self.shared[loop.node] = loop.node
            self.collectors[loop.node] = Collector(LinearReader(), batches)
            self.reading.setdefault(nodes[loop.node], []).append(loop.node)

    def show(self, node: fx.Node, value: Any) -> None:
        """Add what a node computed to what its consumers read."""
        for name in self.reading[node]:
            self.collectors[name].add(value[0] if name == node.name else value)

    def moments(self, team: Team) -> Waiting:
        """By consumer; once: the collectors are used up, each in its turn, as there is no room for both forms."""
        found = ((name, team.inputs(self.collectors.pop(name).moments())) for name in list(self.collectors))
        return Waiting(found, self.shared)
