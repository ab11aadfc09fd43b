"""Select, reweight and shrink in one pass over the network (DESIGN section 6).

The original and the pruned-so-far network are interpreted in lockstep, node by node over all calibration batches. At
a consumer whose group is undecided the moments of both inputs are taken, the group is selected, the live activations
are cut, the consumer is reweighted, and the walk goes on: two forward passes whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.channels import Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.greedy import Block
from subprune_fx.numerics.moments import Moments, accumulate
from subprune_fx.passes.calibrate import Tick, empty_moments, parameter
from subprune_fx.passes.lockstep import Lockstep
from subprune_fx.passes.patches import unit_factors
from subprune_fx.passes.problems import Problem, Settings, blocks, column_units, own_target, pose
from subprune_fx.passes.scratch import Scratch
from subprune_fx.plan import Decision, Plan
from subprune_fx.selectors import Ranking

VARIANTS = ("asym", "seq", "layer")

Choose = Callable[[Group, Sequence[Block], Scratch, int], Ranking]
"""From a group, its consumer's problem on the pruned-so-far network, that network, and how many units to keep."""


class Sweep:
    """One sweep: original network, pruned-so-far network, and the decisions between them."""

    def __init__(
        self,
        network: FxNetwork,
        keep: Mapping[str, int],
        nested: Mapping[str, Ranking],
        *,
        variant: str,
        settings: Settings,
        reweight: bool,
        choose: Choose | None = None,
    ) -> None:
        """Set up.

        Args:
            network: The analysed network.
            keep: Units to keep, by group name.
            nested: Ranking of each group by the original network; used for groups that no single consumer decides,
                and for all by the layer variant and without `choose`.
            variant: `asym`, `seq` or `layer` (paper section 5.1).
            settings: How least squares are posed.
            reweight: False leaves the consumers' weights as they are, but for the ranking's factors.
            choose: Ranks a group again when its consumer is reached; None where the nested order decides.
        """
        self.network = network
        self.keep = keep
        self.nested = nested
        self.variant = variant
        self.settings = settings
        self.reweight = reweight
        self.choose = None if variant == "layer" else choose
        self.scratch = Scratch(network)
        self.decisions: dict[str, Decision] = {}

    def run(self, batches: Sequence[Tensor], tick: Tick | None = None) -> tuple[Plan, list[Any]]:
        """Walk both networks over the calibration inputs.

        Returns:
            The plan, and the pruned network's outputs per batch.
        """
        for group in self.network.channels.groups:
            if self.choose is None or len(group.consumers) > 1:
                self._decide(group, self.nested[group.name])
        walk = Lockstep(self.network.graph_module, self.scratch, batches)
        nodes = list(self.network.graph_module.graph.nodes)
        with torch.no_grad():
            for done, node in enumerate(nodes, 1):
                walk.original(node)
                if node.name in self.network.channels.contractions:
                    self._consume(node, walk)
                walk.pruned(node)
                if tick is not None:
                    tick(done, len(nodes))
        order = [group.name for group in self.network.channels.groups]
        return self.scratch.plan(tuple(self.decisions[name] for name in order)), walk.outputs

    def _consume(self, node: fx.Node, walk: Lockstep) -> None:
        """Decide what the node's consumer decides, and reweight it."""
        consumer = self.network.channels.contractions[node.name]
        undecided = [
            group
            for group in self.network.channels.groups
            if group.name not in self.decisions and node.name in group.consumers
        ]
        if not undecided and not (self.reweight and walk.diverged(node)):
            return
        moments, alive = self._moments(node, consumer, walk), self.scratch.alive
        weight = self.network.readers[node.name].matrix(self.scratch.get(consumer.weight))
        units = self._column_units(consumer, alive)
        posed = pose(moments, weight, units, self.settings)
        for group in undecided:
            assert self.choose is not None
            parts = blocks(group, posed, self.network.channels)
            self._decide(group, self.choose(group, parts, self.scratch, self.keep[group.name]), walk)
        if self.reweight and consumer.weight not in self.network.channels.shared:
            self._reweight(node.name, consumer, posed, moments)

    def _column_units(self, consumer: Consumer, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Units of the columns that the consumer still has, (groups, live columns)."""
        units = column_units(consumer, self.network.readers[consumer.name].taps, self.network.channels.unit)
        return units[alive[units]].reshape(units.shape[0], -1)

    def _moments(self, node: fx.Node, consumer: Consumer, walk: Lockstep) -> Moments:
        """Of the pruned network's input, with the target that the variant aims at.

        asym: Y = A W, the original output without its bias.  seq: Y = B W.
        """
        reader = self.network.readers[node.name]
        weight = self.scratch.get(consumer.weight)
        moments = empty_moments(self.network, consumer, weight)
        aims = self._targets(node, consumer, walk) if self.variant == "asym" else None
        for i, x in enumerate(walk.inputs(node)):
            accumulate(moments, reader, x, None if aims is None else aims[i])
        return moments if aims is not None else own_target(moments, reader.matrix(weight))

    def _targets(self, node: fx.Node, consumer: Consumer, walk: Lockstep) -> list[Tensor]:
        """Original outputs less the bias, on the output channels that are still there."""
        axis = consumer.axis
        kept = torch.from_numpy(np.flatnonzero(self.scratch.alive[self.network.channels.unit[consumer.outputs]]))
        bias = None
        if consumer.bias is not None:
            bias = parameter(self.network.graph_module, consumer.bias)
        targets = []
        for y in walk.originals(node):
            if bias is not None:
                y = y - bias.reshape([-1 if d == axis % y.ndim else 1 for d in range(y.ndim)])  # noqa: PLW2901
            targets.append(y if kept.numel() == y.shape[axis] else y.index_select(axis, kept))
        return targets

    def _decide(self, group: Group, ranking: Ranking, walk: Lockstep | None = None) -> None:
        count = self.keep[group.name]
        kept = np.sort(ranking.order[:count].numpy())
        error = float("nan") if ranking.error is None or walk is None else float(ranking.error[count])
        self.decisions[group.name] = Decision(group.name, len(group.units), tuple(kept.tolist()), error)
        if not self.reweight and ranking.factors is not None:
            self._scale(group, ranking)
        if kept.size == len(group.units):
            return
        alive = self.scratch.alive.copy()
        alive[group.units] = False
        alive[group.units[kept]] = True
        self.scratch.shrink(alive, () if walk is None else walk.live())

    def _scale(self, group: Group, ranking: Ranking) -> None:
        """Multiply the group's outgoing weights by the ranking's factors."""
        alive = self.scratch.alive
        factor = unit_factors(group, ranking, self.keep[group.name], alive.size)
        factor[factor == 0] = 1.0  # those units are cut next
        for name in group.consumers:
            consumer = self.network.channels.contractions[name]
            if consumer.weight in self.network.channels.shared:
                continue
            reader, weight = self.network.readers[name], self.scratch.get(consumer.weight)
            columns = torch.from_numpy(factor[self._column_units(consumer, alive)]).to(weight.dtype)
            self.scratch.set(consumer.weight, reader.weight(reader.matrix(weight) * columns[:, :, None], weight))

    def _reweight(self, name: str, consumer: Consumer, posed: Problem, moments: Moments) -> None:
        """Paper eq. (4), and the intercept that goes with it."""
        alive, scratch = self.scratch.alive, self.scratch
        new = posed.reweighted(alive)
        mask = torch.from_numpy(alive[posed.unit])
        full = torch.zeros_like(posed.weight)
        full[mask] = new.reshape(-1, new.shape[2])
        old = scratch.get(consumer.weight)
        scratch.set(consumer.weight, self.network.readers[name].weight(new, old).to(old.dtype))
        where = self.network.intercepts.get(name)
        if not self.settings.intercept or where is None:
            return
        shift = moments.intercept(full).reshape(-1)
        if where.new and float(shift.abs().max()) == 0:
            return
        current = torch.zeros_like(shift) if where.new else scratch.get(where.name).double()
        scratch.set(where.name, (current + where.sign * shift).to(old.dtype))
