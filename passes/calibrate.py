"""One run of the original network over the calibration inputs: second moments of every consumer's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.collect import Collector
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.packed import Waiting
from subprune_fx.numerics.readers import Reader
from subprune_fx.passes.forward import Forward
from subprune_fx.team import ALONE, Team

Tick = Callable[[int, int], None]


def calibrate(
    network: FxNetwork, batches: Sequence[Inputs], tick: Tick | None = None, team: Team = ALONE
) -> tuple[Waiting, list[Any]]:
    """Moments of every consumer's input in the original network, and the network's outputs.

    Args:
        network: The analysed network.
        batches: Calibration inputs.
        tick: Told (batches done, batches) after each one.
        team: Who has the other batches.

    Returns:
        Moments by consumer name, of all batches (without targets: one that is linear in the input follows from them),
        and one output per own batch.
    """
    recorder = _Recorder(network, team.batches(batches))
    outputs = []
    with torch.no_grad():
        for done, batch in enumerate(batches, 1):
            outputs.append(recorder.run(batch))
            if tick is not None:
                tick(done, len(batches))
    return recorder.moments(team), outputs


def run(network: FxNetwork, batches: Sequence[Inputs], tick: Tick | None = None) -> list[Any]:
    """The network's outputs, one per batch; arguments as for `calibrate`."""
    outputs = []
    with torch.no_grad():
        for done, batch in enumerate(batches, 1):
            outputs.append(Forward(network).run(batch))
            if tick is not None:
                tick(done, len(batches))
    return outputs


def operand(node: fx.Node, source: str) -> fx.Node:
    """The input of `node` that is called `source`."""
    return next(used for used in node.all_input_nodes if used.name == source)


def empty_moments(network: FxNetwork, consumer: Consumer, weight: Tensor) -> Moments:
    """Moments of no rows for a consumer whose weight is now `weight`."""
    groups, columns, targets = network.readers[consumer.name].matrix(weight).shape
    return Moments.zeros(groups, columns, targets)


def parameter(module: torch.nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name."""
    path, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(path), leaf)
    assert isinstance(found, Tensor)
    return found.detach()


class _Recorder(Forward):
    """Collects what every consumer reads; consumers that read the same in the same way share it."""

    def __init__(self, network: FxNetwork, batches: float) -> None:
        super().__init__(network)
        self.network = network
        self.reads: dict[str, tuple[str, Reader]] = {
            name: (network.channels.contractions[name].source, network.readers[name])
            for name in network.channels.consumers
        }
        first = {read: name for name, read in reversed(self.reads.items())}
        self.collectors = {name: Collector(reader, batches) for (_, reader), name in first.items()}
        self.shared = {name: first[read] for name, read in self.reads.items()}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.collectors:
            self.collectors[n.name].add(self.env[operand(n, self.reads[n.name][0])])
        return super().run_node(n)

    def moments(self, team: Team) -> Waiting:
        """By consumer; once: the collectors are used up, each in its turn, as there is no room for both forms."""
        found = ((name, team.inputs(self.collectors.pop(name).moments())) for name in list(self.collectors))
        return Waiting(found, self.shared)
