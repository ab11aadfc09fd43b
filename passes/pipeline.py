"""All passes in order: from a module and calibration inputs to a plan and its error, ready to rewrite."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from subprune_fx.bundle import Inputs, device_of, joined, placed
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.onnx_graph import source_of
from subprune_fx.frontends.onnx_static import fixed_batch
from subprune_fx.graph.channels import Group
from subprune_fx.heap import LARGE, trim
from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.elimination import Part
from subprune_fx.passes.budget import (
    BUDGETS,
    DEFAULT_BUDGET,
    PROBES,
    Budget,
    Keep,
    Rule,
    Trial,
    allot,
    fraction,
    least,
)
from subprune_fx.passes.calibrate import Tick, calibrate, run
from subprune_fx.passes.dependencies import analyse, restrict
from subprune_fx.passes.distil import distil, trained
from subprune_fx.passes.evidence import Errors, Gatherer
from subprune_fx.passes.forward import check_precision
from subprune_fx.passes.memory import Store, batch_within
from subprune_fx.passes.outputs import agreement, batches_of, head, output_change
from subprune_fx.passes.patches import keeping
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.proof import proven
from subprune_fx.passes.rankings import Orders, Rankings
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch
from subprune_fx.passes.size import MEASURED, TARGETS, parameters
from subprune_fx.passes.steps import only_layers, rounded, stepped, steps_of, units_of
from subprune_fx.passes.sweep import Sweep
from subprune_fx.passes.trials import Metric, trials
from subprune_fx.plan import Layer, Plan
from subprune_fx.precisions import DEFAULT_PRECISION
from subprune_fx.report import Step
from subprune_fx.selectors import DEFAULT_SELECTOR, LABELLED, SELECTORS, Need, Ranking
from subprune_fx.team import ALONE, Team

TRIAL_PASSES = 4
"""What measuring groups alone for the `output` budget should cost at most, in passes over the calibration inputs."""

LEAST_TRIAL_SAMPLES, MOST_TRIAL_SAMPLES = 32, 256
"""Inputs it is measured on, whatever it costs. On ResNet56 the budgets that 256 find change the output 5 % less."""

CURVE_POINTS = 25
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chooses, whatever the ratio.

    Attributes:
        select: A row of `subprune_fx.selectors.SELECTORS`.
        variant: `asym`, `seq` or `layer`.
        target: What the ratio counts, a key of `passes.size.TARGETS`, or measures, one of `MEASURED`.
        file: Suffix of the file whose bytes are measured.
        threads: Of onnxruntime where latency is measured; 0 for all cores.
        budget: A rule of `passes.budget.BUDGETS`; None: the selector's own, or else the default.
        only: Patterns of the groups to prune; none: all.
        skip: Patterns of groups to leave alone.
        align: What the widths of pruned layers are multiples of; None: what the target does best with.
        layers: What single groups are to keep, whatever the budget.
        reweight: False leaves consumers' weights as they are.
        settings: How least squares are posed.
        stochastic: Epsilon of stochastic greedy (paper App. B.3); None for exact greedy.
        distil: Steps of label-free distillation after pruning (training); 0: none.
        seed: Of everything random.
        batch: Most samples a forward pass.
        memory: Most bytes of activations that are kept in memory, see `passes.memory`; None: no limit.
        precision: What forward passes are computed in, see `subprune_fx.precisions`.
    """

    select: str = DEFAULT_SELECTOR
    variant: str = "asym"
    target: str = "params"
    file: str = ".onnx"
    threads: int = 1
    budget: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    align: int | None = None
    layers: tuple[Layer, ...] = ()
    reweight: bool = True
    settings: Settings = dataclasses.field(default_factory=Settings)
    stochastic: float | None = None
    distil: int = 0
    seed: int = 0
    batch: int = 64
    memory: int | None = None
    precision: str = DEFAULT_PRECISION


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the passes found for one ratio.

    Attributes:
        ratio: Size before over size after, at least.
        plan: What to do to the network.
        module: The network with that done.
        align: What the widths of pruned layers are multiples of.
        outputs: The pruned network's outputs on the calibration inputs, by batch.
        seconds: Wall time by stage, from the start of the calibration.
        searched: Measurements that led to the ratio.
        drop: What was measured of this network, in percentage points.
    """

    ratio: float
    plan: Plan
    module: fx.GraphModule
    outputs: list[Any]
    seconds: dict[str, float]
    align: int = 1
    searched: tuple[Step, ...] = ()
    drop: float | None = None


class Compiler:
    """The passes in order. What does not depend on the ratio is done once, however many ratios are asked for.

    Attributes:
        network: The analysed network.
        options: The user's choices.
        align: What the widths of pruned layers are multiples of.
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

        Raises:
            SubpruneError: If the network cannot be traced or has nothing to prune.
        """
        self.options = options
        self.team = team
        self._report = progress or (lambda _stage, _done, _total: None)
        self._large = sum(tensor.numel() for tensor in module.parameters()) > LARGE
        self._clock = _Clock(large=self._large)
        calibration = placed(calibration, device_of(module))
        fixed = fixed_batch(module)
        with self._clock("dependencies"):
            example = calibration[: fixed or 2]
            found = restrict(analyse(module, example), options.only, options.skip)
            self.network = network = dataclasses.replace(proven(found, example), precision=options.precision)
        check_precision(options.precision, network.graph_module)
        self._store = Store(options.memory)
        self._step = fixed or 1
        self._batch = fixed or batch_within(options.memory, options.batch, network.graph_module, calibration[:1])
        self.cut = cut = functools.partial(batches_of, size=self._batch, whole=fixed is not None)
        _check_shares(options, team, len(calibration) // (fixed or 1))
        self._batches = cut(team.share(calibration))
        self._labels = None if labels is None else cut(team.share(labels))
        self.verification = None
        if verification is not None:
            held_out = placed(team.share(verification[0]), device_of(module))
            self.verification = cut(held_out), cut(team.share(verification[1]))
        if options.distil and source_of(self.network.graph_module) is not None:
            what = "distillation needs gradients, and onnxruntime gives none"
            raise SubpruneError(what, remedy="leave distil out, or start from the PyTorch network")
        self._row = SELECTORS[options.select]
        if Need.GRADIENTS in self._row.needs and source_of(self.network.graph_module) is not None:
            what = f"selector {self._row.name} needs gradients, and onnxruntime gives none"
            raise SubpruneError(what, remedy="choose another, or start from the PyTorch network")
        self._evidence = Gatherer(
            self.network,
            self._moments,
            options.settings,
            batches=self._batches,
            labels=self._labels,
            training=training,
            seed=options.seed,
            epsilon=options.stochastic,
            team=team,
        )
        with self._clock("calibrate"):
            self._calibrated: Mapping[str, Collected] | None = None
            if Need.MOMENTS in self._row.needs:
                self._moments()
            else:
                self.outputs = run(self.network, self._batches, self._tick("calibrate"))
        groups = network.channels.groups
        self._rankings = Rankings(groups, self._rank, team, lambda done, total: self._report("select", done, total))
        self._orders = Orders(self._rankings)
        self._measured = self._measures()
        self._widths = parameters(self.network, self._orders, self._batches[0], intercepts=False)
        self._align(options.align or 1)

    def _align(self, align: int) -> None:
        self.align = align
        self._steps = steps_of(self._widths, align, self.options.layers)
        self._budget = stepped(self._measured, self._steps)

    def aligned(self, align: int) -> Compiler:
        """The same, calibrated as it is, with widths in multiples of `align`."""
        found = copy.copy(self)
        found._align(align)  # noqa: SLF001 - its own
        return found

    @property
    def most(self) -> float:
        """The largest ratio that can be reached."""
        return self._budget.size.total / least(self._budget)

    def compile(self, ratio: float) -> Compiled:
        """The plan for one ratio.

        Raises:
            SubpruneError: If the ratio is out of reach.
        """
        keep = self._allotted(ratio)
        self._forget()
        return self._compiled(ratio, keep)

    def _allotted(self, ratio: float) -> Keep:
        with self._clock("select"):
            self._rankings.find(tuple(self._rankings))
        with self._clock("budget"):
            return units_of(self._steps, self.team.agreed(allot(self._rule(), self._budget, ratio)))

    def curve(self, group: str) -> tuple[tuple[int, float], ...]:
        """Error of a group at some numbers of units, where ranking has been needed and has given it."""
        ranking = self._rankings.known(group)
        if ranking is None or ranking.error is None:
            return ()
        error = ranking.error
        some = np.unique(np.linspace(0, len(error) - 1, CURVE_POINTS).round().astype(int)).tolist()
        return tuple((k, float(error[k])) for k in some)

    def shape(self, ratio: float) -> fx.GraphModule:
        """A network of the shape that `compile` gives, with weights that are not fitted."""
        keep = self._allotted(ratio)
        scratch = Scratch(self.network)
        if self.options.settings.intercept and self.options.reweight:
            for name in self.network.channels.consumers:
                where = self.network.intercepts.get(name)
                if where is not None and where.new:  # ones: an exporter might drop zeros
                    scratch.set(where.name, torch.ones(self.network.channels.contractions[name].outputs.shape))
        alive = np.ones_like(scratch.alive)
        for group in self.network.channels.groups:
            alive[group.units] = False
            alive[group.units[self._orders[group.name][: keep[group.name]]]] = True
        scratch.shrink(alive)
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
        with self._clock("sweep"):
            sweep = Sweep(
                self.network,
                keep,
                self._rankings,
                variant=self.options.variant,
                settings=self.options.settings,
                reweight=self.options.reweight,
                choose=self._choose if self._decides_late() else None,
                store=self._store,
                team=self.team,
            )
            plan, outputs = sweep.run(self._batches, self._tick("sweep"))
        with self._clock("rewrite"):
            module = apply(plan, self.network.graph_module)
        if self.options.distil:
            with self._clock("distil"):
                plan, outputs = self._distil(plan, module)
        return Compiled(ratio, plan, module, outputs, dict(self._clock.seconds), self.align)

    def _distil(self, plan: Plan, module: fx.GraphModule) -> tuple[Plan, list[Any]]:
        original = self.network.graph_module
        inputs = joined(self._batches)
        distil(module, original, inputs, self.options.distil, self.options.seed, self._tick("distil"))
        with torch.no_grad():
            outputs = [module(batch) for batch in self._batches]
        return trained(plan, module, original), outputs

    def _tick(self, stage: str) -> Tick:
        return lambda done, total: self._report(stage, done, total)

    def _forget(self) -> None:
        """Drop the moments: the sweep takes its own, and what budgets were told of them is kept."""
        self._calibrated = None
        self._evidence.forget()
        if self._large:
            trim()

    def _moments(self) -> Mapping[str, Collected]:
        """Of the original network, on first demand."""
        if self._calibrated is None:
            self._calibrated, self.outputs = calibrate(self.network, self._batches, self._tick("calibrate"), self.team)
        return self._calibrated

    def _rank(self, group: Group) -> Ranking:
        """Nested order of a group by the original network."""
        found = self._row.rank(self._evidence.of(group, self._row.needs), None)
        if self._large:  # the next group's matrices have another size, and do not fit into what this one's have left
            trim()
        return found

    def _decides_late(self) -> bool:
        """Whether groups wait for the sweep: seq aims at what all of a layer's channels give there, dropped or not."""
        return self._row.live or (self.options.reweight and self.options.variant == "seq")

    def _choose(self, group: Group, parts: Sequence[Part], scratch: Scratch, keep: int) -> Ranking:
        """Rank a group again on the pruned-so-far network, if the selector does that."""
        if not self._row.live:
            return self._rankings[group.name]
        return self.team.agreed(self._row.rank(self._evidence.live(group, self._row.needs, parts, scratch), keep))

    def _trial_samples(self) -> int:
        """Inputs on which the change of the output is measured: fewer where there are many groups to measure.

        What runs behind a group is half of the network on average.
        """
        (samples,) = self.team.numbers(sum(map(len, self._batches)))
        trials = len(self.network.channels.groups) * len(PROBES)
        return min(max(LEAST_TRIAL_SAMPLES, round(2 * TRIAL_PASSES * samples / trials)), MOST_TRIAL_SAMPLES)

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

    def _measures(self) -> Budget:
        """What budget rules may ask: sizes, error curves, and trials of one group at a time."""
        intercepts = self.options.settings.intercept and self.options.reweight
        batches, labels = self.verification or (self._batches, self._labels)
        few = -(-(self._trial_samples() - self.team.rank) // self.team.size)
        some = head(self._batches, self._step * max(1, -(-few // self._step)))
        orders = self._orders
        groups = {group.name: group for group in self.network.channels.groups}

        def patches(group: Group, alive: NDArray[np.bool_]) -> dict[str, Tensor]:
            if self.options.reweight:
                return self._evidence.reweighter.patches(group, alive)
            return keeping(self.network, self._rankings)(group, alive)

        def errors(name: str) -> NDArray[np.float64]:
            return self._evidence.errors(groups[name], self._rankings[name], reweight=self.options.reweight)

        def trial(metric: Metric, batches: Sequence[Inputs]) -> Trial:
            return functools.cache(
                lambda sizes: trials(
                    self.network,
                    patches,
                    orders,
                    dict(sizes),
                    batches,
                    metric,
                    self._tick("budget"),
                    self._store,
                )
            )

        return Budget(
            size=TARGETS[MEASURED.get(self.options.target, self.options.target)](
                self.network, orders, self._batches[0], intercepts=intercepts
            ),
            error=Errors(tuple(groups), errors),
            accuracy=trial(agreement(self.outputs, labels, self.team), batches),
            change=trial(output_change(self.outputs, sum(map(len, some)), self.team), some),
        )


def _check_shares(options: Options, team: Team, shares: int) -> None:
    """Refuse what several processes cannot share.

    Raises:
        SubpruneError: Something is.
    """
    needs = SELECTORS[options.select].needs
    for unfit, what in (
        (bool(needs & LABELLED), f"selector {options.select}"),
        (options.distil > 0, "distillation"),
        (shares < team.size, f"a set of {shares} batches or inputs"),
    ):
        if unfit and team.size > 1:
            raise SubpruneError(f"{what} cannot be shared by {team.size} processes", remedy="run fewer, or one")


class _Clock:
    """Times stages, and clears up behind each: graphs are cycles, which hold copies of a network until collected."""

    def __init__(self, *, large: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._large = large

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._large:
            gc.collect()
        trim()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
