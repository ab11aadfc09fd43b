"""All passes in order: from a module and calibration inputs to a plan and its error, ready to rewrite."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from subprune_fx.bundle import Inputs, device_of, placed
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.frontends.onnx_static import fixed_batch
from subprune_fx.graph.channels import Group
from subprune_fx.heap import LARGE, trim
from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.packed import Waiting
from subprune_fx.passes.budget import Rule, fraction
from subprune_fx.passes.budgets import BUDGETS, DEFAULT_BUDGET, allot, least
from subprune_fx.passes.calibrate import calibrate, run
from subprune_fx.passes.clock import Clock, Progress, Tick
from subprune_fx.passes.compiled import Compiled, distilled
from subprune_fx.passes.dependencies import analyse, restrict
from subprune_fx.passes.evidence import Gatherer
from subprune_fx.passes.forward import check_precision
from subprune_fx.passes.measures import Measures
from subprune_fx.passes.memory import Store, batch_within
from subprune_fx.passes.options import Options, check_gradients, check_shares
from subprune_fx.passes.outputs import batches_of
from subprune_fx.passes.proof import proven
from subprune_fx.passes.rankings import Orders, Rankings
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch
from subprune_fx.passes.size import parameters
from subprune_fx.passes.steps import multiples, only_layers, rounded, stepped, steps_of, units_of
from subprune_fx.passes.sweep import Sweep, beforehand
from subprune_fx.passes.thin import thinned
from subprune_fx.selectors import SELECTORS, Keep, Need, Ranking
from subprune_fx.team import ALONE, Team

CURVE_POINTS = 25
"""Most points of an error curve that the report has."""


class Compiler:
    """The passes in order. What does not depend on the ratio is done once, however many ratios are asked for.

    Attributes:
        network: The analysed network.
        options: The user's choices.
        align: What the widths of pruned layers are multiples of; None: see `passes.steps.multiples`.
        outputs: The original network's outputs on this process's calibration inputs, by batch.
        cut: Cuts inputs, or labels, into the batches that the network is run on.
        verification: Labelled inputs of this process by batch; None: there are none.
        team: Who runs the others.
    """

    def __init__(
        self,
        module: nn.Module,
        calibration: Inputs,
        options: Options,
        labels: Tensor | None = None,
        training: tuple[Inputs, Tensor] | None = None,
        verification: tuple[Inputs, Tensor] | None = None,
        progress: Progress | None = None,
        team: Team = ALONE,
        *,
        judges: Inputs | None = None,
        budgeted: bool = True,
    ) -> None:
        """Analyse, calibrate and select.

        Args:
            module: The network, unchanged.
            calibration: Inputs, (samples, ...).
            options: The user's choices.
            labels: Class of each calibration input, for the accuracy budget and some selectors; None compares with the
                original network's own predictions.
            training: More labelled inputs, for a selector that needs them.
            verification: Labelled inputs for the accuracy budget; None: the calibration inputs.
            progress: Told (stage, done, total).
            team: Processes that do the same with the same arguments: each runs its share of the inputs.
            judges: Inputs by which distillation keeps weights; None: the calibration inputs.
            budgeted: Whether a budget will be asked for; else moments are only taken where the sweep takes none.

        Raises:
            SubpruneError: If the network cannot be traced or has nothing to prune.
        """
        settings = dataclasses.replace(options.settings, samples=max(1, len(calibration)))
        self.options = options = dataclasses.replace(options, settings=settings)
        self.team = team
        self._report = progress or (lambda _stage, _done, _total: None)
        self._large = sum(tensor.numel() for tensor in module.parameters()) > LARGE
        self._clock = Clock(large=self._large)
        calibration = placed(calibration, device_of(module))
        self._judges = None if judges is None else placed(judges, device_of(module))
        fixed = fixed_batch(module)
        with self._clock("dependencies"):
            example = calibration[: fixed or 2]
            found = restrict(analyse(module, example), options.only, options.skip)
            found = thinned(proven(found, example), len(calibration), options.settings.rows)
            self.network = network = dataclasses.replace(found, precision=options.precision)
        check_precision(options.precision, network.graph_module)
        self._store = Store(options.memory)
        self._step = fixed or 1
        self._batch = fixed or batch_within(options.memory, options.batch, network.graph_module, calibration[:1])
        self.cut = cut = functools.partial(batches_of, size=self._batch, whole=fixed is not None)
        check_shares(options, team, len(calibration) // (fixed or 1))
        self._batches = cut(team.share(calibration))
        self._labels = None if labels is None else cut(team.share(labels))
        self.verification = None
        if verification is not None:
            held_out = placed(team.share(verification[0]), device_of(module))
            self.verification = cut(held_out), cut(team.share(verification[1]))
        if source_of(network.graph_module) is not None:
            check_gradients(options)
        self._row = SELECTORS[options.select]
        self._evidence = Gatherer(
            self.network,
            self._moments,
            options.settings,
            batches=self._batches,
            labels=self._labels,
            training=None if training is None else (placed(training[0], device_of(module)), training[1]),
            seed=options.seed,
            epsilon=options.stochastic,
            team=team,
        )
        late = not budgeted and self._row.live and self._decides_late()
        self._read = readers_of(beforehand(network, late=late))
        with self._clock("calibrate"):
            self._calibrated: Waiting | None = None
            if Need.MOMENTS in self._row.needs:
                self._moments()
            else:
                self.outputs = run(self.network, self._batches, self._tick("calibrate"))
        groups = network.channels.groups
        self._rankings = Rankings(
            groups,
            self._rank,
            team,
            self._tick("select"),
            self._gather,
        )
        self._orders = Orders(self._rankings)
        self._measured = Measures(
            network, options, self._evidence, self._rankings, self._orders, self._store, self._tick("budget"), team
        ).budget(self._batches, self.outputs, self.verification or (self._batches, self._labels), self._step)
        self._widths = parameters(self.network, self._orders, self._batches[0], intercepts=False)
        self._align(options.align)

    def _align(self, align: int | None) -> None:
        self.align = align
        by_group = multiples(self.network.channels, align)
        self._steps = steps_of(self._widths, by_group, self.options.layers, strict=self.options.align is not None)
        self._budget = stepped(self._measured, self._steps)

    def aligned(self, align: int | None) -> Compiler:
        """The same, calibrated as it is, with widths in multiples of `align`; None: see `passes.steps.multiples`."""
        found = copy.copy(self)
        found._align(align)  # noqa: SLF001 - its own
        return found

    @property
    def counts(self) -> list[int]:
        """Samples of each batch that `outputs` has."""
        return [*map(len, self._batches)]

    @property
    def most(self) -> float:
        """The largest ratio that can be reached."""
        return self._budget.size.total / least(self._budget)

    def compile(self, ratio: float) -> Compiled:
        """The plan for one ratio.

        Raises:
            SubpruneError: If the ratio is out of reach.
        """
        return self._compiled(ratio, self._allotted(ratio))

    def _allotted(self, ratio: float) -> Keep:
        with self._clock("select"):
            self._rankings.first(dict.fromkeys(self._rankings))
        with self._clock("budget"):
            return units_of(self._steps, self.team.agreed(allot(self._rule(), self._budget, ratio)))

    def curve(self, group: str) -> tuple[tuple[int, float], ...]:
        """Error of a group at some numbers of units, where ranking has been needed and has given it."""
        ranking = self._rankings.known(group)
        if ranking is None or ranking.error is None:
            return ()
        known = np.flatnonzero(np.isfinite(ranking.error.numpy()))  # where all units stay, only the last is
        some = known[np.unique(np.linspace(0, len(known) - 1, CURVE_POINTS).round().astype(int))].tolist()
        return tuple((k, ranking.share(k)) for k in some)

    def shape(self, ratio: float) -> fx.GraphModule:
        """A network of the shape that `compile` gives, with weights that are not fitted."""
        keep = self._allotted(ratio)
        scratch = Scratch(self.network)
        if self.options.settings.intercept and self.options.reweight:
            for name in self.network.channels.consumers:
                where = self.network.intercepts.get(name)
                if where is not None and where.new:  # ones: an exporter might drop zeros
                    scratch.set(where.name, torch.ones(self.network.channels.contractions[name].outputs.shape))
        channels = self.network.channels
        kept = (group.units[self._orders[group.name][: keep[group.name]]] for group in channels.groups)
        scratch.shrink(channels.alive(kept, channels.groups))
        return apply(scratch.plan(()), self.network.graph_module)

    def compile_fraction(self, alpha: float) -> Compiled:
        """The plan in which every group keeps the fraction `alpha` of its units, whatever the options' budget."""
        size = self._measured.size
        keep = units_of(self._steps, rounded(self._steps, fraction(size.units, alpha)))
        return self._compiled(size.total / size.of(keep), keep)

    def compile_layers(self) -> Compiled:
        """The plan in which only the options' layers are pruned."""
        size = self._measured.size
        keep = only_layers(self._steps, size.units, self.options.layers)
        return self._compiled(size.total / size.of(keep), keep)

    def _compiled(self, ratio: float, keep: Keep) -> Compiled:
        late = self._decides_late()
        with self._clock("select"):
            nested = self._rankings.first(self._counts(keep, late=late))
        sweep = Sweep(
            self.network,
            keep,
            nested,
            variant=self.options.variant,
            settings=self.options.settings,
            reweight=self.options.reweight,
            choose=self._choose if late else None,
            store=self._store,
            team=self.team,
        )
        with self._clock("sweep"):
            sweep.begin(lambda: self._evidence.reweighter)
            self._forget()
            plan, outputs = sweep.run(self._batches, self._tick("sweep"))
        with self._clock("rewrite"):
            module = apply(plan, self.network.graph_module)
        found = Compiled(ratio, plan, module, outputs, {}, self.align)
        if self.options.distil:
            with self._clock("distil"):
                found = distilled(
                    found, self.network.graph_module, self._batches, self._judges, self.options, self._tick("distil")
                )
        return dataclasses.replace(found, seconds=dict(self._clock.seconds))

    def _tick(self, stage: str) -> Tick:
        return lambda done, total: self._report(stage, done, total)

    def _forget(self) -> None:
        """Drop the moments: the sweep takes its own, and what budgets were told of them is kept."""
        self._calibrated = None
        self._evidence.forget()
        if self._large:
            trim()

    def _moments(self) -> Waiting:
        """Of the original network, on first demand."""
        if self._calibrated is None:
            self._calibrated, self.outputs = calibrate(
                self.network, self._batches, self._tick("calibrate"), self.team, self._read
            )
        return self._calibrated

    def _gather(self, names: Collection[str]) -> None:
        """Compute what groups are ranked by, as far as it takes all processes together."""
        wanted = readers_of(group for group in self.network.channels.groups if group.name in names)
        if not wanted <= self._read:
            self._read |= wanted
            self._forget()
        self._evidence.gather(self._row.needs)

    def _rank(self, group: Group, count: int | None) -> Ranking:
        """Nested order of a group by the original network, of its first units (None: of all)."""
        found = self._row.rank(self._evidence.of(group, self._row.needs), count)
        if self._large:  # the next group's matrices have another size, and do not fit into what this one's have left
            trim()
        return found

    def _decides_late(self) -> bool:
        """Whether groups are decided when the sweep reaches their consumers; seq aims at what all channels give."""
        if self.options.variant == "layer":
            return False
        return self._row.live or (self.options.reweight and self.options.variant == "seq")

    def _counts(self, keep: Keep, *, late: bool) -> dict[str, int | None]:
        """Groups that the sweep wants ranked by the original network, and how many units of each (None: all)."""
        if not self._row.live:
            return dict.fromkeys(self._rankings)
        return {group.name: keep[group.name] for group in beforehand(self.network, late=late)}

    def _choose(self, group: Group, parts: Sequence[Part], scratch: Scratch, keep: int) -> Ranking:
        """Rank a group again on the pruned-so-far network, if the selector does that."""
        if not self._row.live:
            return self._rankings[group.name]
        return self.team.agreed(self._row.rank(self._evidence.live(group, self._row.needs, parts, scratch), keep))

    @property
    def rule(self) -> str:
        """The budget rule: what the user asks for, or the selector's own, or the default."""
        own = None if self._row.allot is None else f"{self._row.name}'s own"
        return self.options.budget or own or DEFAULT_BUDGET

    def _rule(self) -> Rule:
        own = self._row.allot
        if own is None or self.rule in BUDGETS:
            return BUDGETS[self.rule]
        size = self._measured.size
        return lambda _, target: rounded(self._steps, own(self._rankings, size.of, target))


def readers_of(groups: Iterable[Group]) -> frozenset[str]:
    """Names of the consumers that read any of the groups."""
    return frozenset(name for group in groups for name in group.consumers)
