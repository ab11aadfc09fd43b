"""Select, reweight and shrink in one pass over the network (DESIGN section 6).

The original and the pruned-so-far network are interpreted in lockstep, step by step over all calibration batches. At
a consumer whose group is undecided the moments of both inputs are taken, the group is selected, the live activations
are cut, the consumer is reweighted, and the walk goes on: two forward passes whatever the depth.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_recurrent import recurrent
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.collect import Collected, Collector
from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.readers import Reader
from subprune_fx.numerics.targets import Targets
from subprune_fx.numerics.thinned_reader import Inputs as Looked
from subprune_fx.numerics.thinned_reader import picked
from subprune_fx.passes import joint
from subprune_fx.passes.aims import Aim, aim, saturated
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.lockstep import Lockstep
from subprune_fx.passes.memory import Store
from subprune_fx.passes.patches import unit_factors
from subprune_fx.passes.problems import Problem, Settings, blocks, column_units, live_units, pose
from subprune_fx.passes.recurrent import refit
from subprune_fx.passes.scratch import Scratch
from subprune_fx.passes.trials import Reweighter
from subprune_fx.plan import Decision, Plan
from subprune_fx.selectors import Ranking
from subprune_fx.team import ALONE, Team

Choose = Callable[[Group, Sequence[Part], Scratch, int], Ranking]
"""From a group, its consumer's problem on the pruned-so-far network, that network, and how many units to keep."""


def beforehand(network: FxNetwork, *, late: bool) -> list[Group]:
    """Groups that are decided before the sweep: all, or if `late` those of several consumers or a normalisation.

    So are those whose only consumer makes some of the channels itself: it would decide how many outputs it is fitted
    to.
    """
    groups = network.channels.groups
    return [one for one in groups if not late or len(one.consumers) > 1 or one.normalised or _loops(network, one)]


def _loops(network: FxNetwork, group: Group) -> bool:
    """Whether a consumer of a group makes channels of it too."""
    channels = network.channels
    made = (channels.unit[channels.contractions[name].outputs] for name in group.consumers)
    return any(np.isin(units, group.units).any() for units in made)


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
        store: Store | None = None,
        team: Team = ALONE,
    ) -> None:
        """Set up.

        Args:
            network: The analysed network.
            keep: Units to keep, by group name.
            nested: Rankings by the original network of the groups that are decided `beforehand`, of at least as many
                units as they keep.
            variant: `asym`, `seq` or `layer` (paper section 5.1).
            settings: How least squares are posed.
            reweight: False leaves the consumers' weights as they are, but for the ranking's factors.
            choose: Ranks a group again when its consumer is reached; None where the nested order decides.
            store: What keeps activations below a limit; None: no limit.
            team: Who sweeps with other batches.
        """
        self.network = network
        self.keep = keep
        self.nested = nested
        self.variant = variant
        self.settings = settings
        self.reweight = reweight
        self.choose = None if variant == "layer" else choose
        self.store = store
        self.team = team
        self.scratch = Scratch(network)
        self.decisions: dict[str, Decision] = {}
        self._samples = 0
        self._begun = False
        self._last: tuple[tuple[str, Reader], Collected] | None = None
        contractions = network.channels.contractions.items()
        self._readers = Counter((consumer.source, network.readers[name]) for name, consumer in contractions)

    def begin(self, reweighter: Callable[[], Reweighter] | None = None) -> None:
        """Do what is done before the walk.

        Args:
            reweighter: Makes weights by the original network's moments, for layers that are called at several places;
                None: these keep theirs.
        """
        self._begun = True
        for group in beforehand(self.network, late=self.choose is not None):
            self._decide(group, self.nested[group.name])
        if self.reweight and reweighter is not None:
            joint.refit(self.scratch, reweighter)

    def run(self, batches: Sequence[Inputs], tick: Tick | None = None) -> tuple[Plan, list[Any]]:
        """Walk both networks over the calibration inputs.

        Returns:
            The plan, and the pruned network's outputs per batch.
        """
        if not self._begun:
            self.begin()
        self._samples = round(self.team.numbers(sum(map(len, batches)))[0])
        walk = Lockstep(self.network.graph_module, self.scratch, batches, self.store, self.team)
        with torch.no_grad():
            for done, stretch in enumerate(walk.stretches, 1):
                walk.original(stretch)
                if stretch[0].name in self.network.channels.contractions:
                    self._consume(stretch[0], walk)
                if stretch[0].target is recurrent and self.reweight:
                    refit(walk, stretch[0], self.network, self.scratch, self.settings)
                walk.pruned(stretch)
                if tick is not None:
                    tick(done, len(walk.stretches))
        order = [group.name for group in self.network.channels.groups]
        return self.scratch.plan(tuple(self.decisions[name] for name in order)), walk.outputs

    def _consume(self, node: fx.Node, walk: Lockstep) -> None:
        """Decide what the node's consumer decides, and reweight it."""
        channels = self.network.channels
        consumer = channels.contractions[node.name]
        undecided = [
            group for group in channels.groups if group.name not in self.decisions and node.name in group.consumers
        ]
        reweight = self.reweight and consumer.weight not in channels.shared
        if not undecided and not (reweight and self._misses(node, consumer, walk)):
            return
        aimed, moments, posed = self._pose(node, consumer, walk)
        settled = np.ones_like(self.scratch.alive)
        for group in undecided:
            settled[group.units] = False
        for group in undecided:
            self._decide(group, self._chosen(group, posed, settled), walk)
            settled[group.units] = True
        if reweight:
            moments, posed = moments.only(posed.kept(self.scratch.alive)), posed.only(self.scratch.alive)
            self._reweight(node.name, consumer, posed, moments, aimed)

    def _chosen(self, group: Group, posed: Problem, settled: NDArray[np.bool_]) -> Ranking:
        assert self.choose is not None
        parts = blocks(group, posed, self.network.channels, settled, self.scratch.alive)
        return self.choose(group, parts, self.scratch, self.keep[group.name])

    def _misses(self, node: fx.Node, consumer: Consumer, walk: Lockstep) -> bool:
        """Whether the consumer has something to make up for: lost channels or, for asym, any change of its input."""
        if self._variant(node, consumer, walk) == "asym":
            return walk.reads_other(node, consumer.source)
        return not bool(self.scratch.alive[self.network.channels.unit[consumer.labels]].all())

    def _variant(self, node: fx.Node, consumer: Consumer, walk: Lockstep) -> str:
        """Where the pruned network's rows are not the original's, one by one, only the original says what to aim at.

        The data may decide their order, or how many there are.
        """
        return "layer" if consumer.shuffled or walk.differs(node, consumer.source, consumer.data) else self.variant

    def _pose(self, node: fx.Node, consumer: Consumer, walk: Lockstep) -> tuple[Aim | None, Collected, Problem]:
        """The consumer's least-squares problem: what it reads, and the target that the variant aims at.

        Of the moments only the means are given: their products are the problem's.

        asym and seq read the pruned network's activations B and have the aims of `passes.aims`; layer reads the
        original's A and aims at A W.
        """
        variant = self._variant(node, consumer, walk)
        reader, alive = self.network.readers[node.name], self.scratch.alive
        units = column_units(consumer, reader.taps, self.network.channels.unit)
        aimed = aim(self.network, self.scratch, walk, node, consumer, variant, feedback=self.settings.feedback)
        if variant == "layer":
            outputs = alive[self.network.channels.unit[consumer.outputs]].reshape(consumer.groups, -1)[0]
            whole = reader.matrix(parameter(self.network.graph_module, consumer.weight))
            matrix = whole[:, :, torch.from_numpy(outputs)]
        else:
            units = live_units(units, alive)
            matrix = reader.matrix(self.scratch.get(consumer.weight))
        matrix = matrix.cpu()
        read = walk.original_inputs if variant == "layer" else walk.inputs
        reader, inputs = picked(reader, functools.partial(read, node, consumer.source))
        moments = self._collected(node, consumer, walk.share, (reader, inputs)).untargeted(matrix.shape[2])
        if aimed is None:
            moments = moments.towards(matrix)
        else:
            targets = Targets(moments, reader)
            for x, y in zip(inputs(), aimed.targets, strict=True):
                targets.add(x, y)
            moments = self.team.targets(targets.moments())
        settings, own = self.settings.of(node.name in self.network.intercepts), self._last is None
        posed = pose(moments, matrix, units, settings, own=own)
        return aimed, moments.means(), posed

    def _collected(self, node: fx.Node, consumer: Consumer, share: float, looking: tuple[Reader, Looked]) -> Collected:
        """Moments of the consumer's input, which the next consumer may read in the same way."""
        key = consumer.source, self.network.readers[node.name]
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self._last = None
        reader, inputs = looking
        collector = Collector(reader, share)
        for x in inputs():
            collector.add(x)
        found = self.team.inputs(collector.moments())
        if self._readers[key] > 1:
            self._last = key, found
        return found

    def _decide(self, group: Group, ranking: Ranking, walk: Lockstep | None = None) -> None:
        count = self.keep[group.name]
        kept = np.sort(ranking.order[:count].numpy())
        self.decisions[group.name] = Decision(group.name, len(group.units), tuple(kept.tolist()), ranking.share(count))
        if not self.reweight and ranking.factors is not None:
            self._scale(group, ranking)
        if kept.size == len(group.units):
            return
        alive = self.scratch.alive.copy()
        alive[group.units] = False
        alive[group.units[kept]] = True
        self._last = None
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
            units = live_units(column_units(consumer, reader.taps, self.network.channels.unit), alive)
            columns = torch.from_numpy(factor[units]).to(weight)
            self.scratch.set(consumer.weight, reader.weight(reader.matrix(weight) * columns[:, :, None], weight))

    def _reweight(self, name: str, consumer: Consumer, posed: Problem, moments: Collected, aimed: Aim | None) -> None:
        """Paper eq. (4), and the intercept that goes with it."""
        scratch = self.scratch
        where = self.network.intercepts.get(name)
        settings = self.settings.of(where is not None)
        if settings.ridge is None and moments.rows == self._samples:
            posed = posed.cross_validated(moments.rows)
        if aimed is not None and aimed.tail.saturates:
            posed, moments = saturated(aimed, posed, moments, settings)
        new, old = posed.solution(), scratch.get(consumer.weight)
        scratch.set(consumer.weight, self.network.readers[name].weight(new, old).to(old))
        if not settings.intercept or where is None:
            return
        shift = moments.intercept(new).reshape(-1)
        if where.new and float(shift.abs().max()) == 0:
            return
        current = torch.zeros_like(shift) if where.new else scratch.get(where.name).cpu().double()
        scratch.set(where.name, (current + where.sign * shift.reshape(current.shape)).to(old))
