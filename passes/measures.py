"""What budget rules may ask of a network: sizes, error curves, and trials of one group at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.channels import Group
from subprune_fx.passes.budget import Budget, Sizes, Trial
from subprune_fx.passes.budget_output import PROBES
from subprune_fx.passes.by_sample import tensors_of
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.evidence import Errors, Gatherer
from subprune_fx.passes.memory import Store
from subprune_fx.passes.options import Options
from subprune_fx.passes.outputs import agreement, check_classes, check_scores, head, output_change, scores_at
from subprune_fx.passes.patches import keeping
from subprune_fx.passes.rankings import Orders
from subprune_fx.passes.size import MEASURED, TARGETS
from subprune_fx.passes.trials import Metric, trials
from subprune_fx.selectors import Ranking
from subprune_fx.team import Team

TRIAL_PASSES = 4
"""What measuring groups alone for the `output` budget should cost at most, in passes over the calibration inputs."""

LEAST_TRIAL_SAMPLES, MOST_TRIAL_SAMPLES = 32, 256
"""Inputs it is measured on, whatever it costs. On ResNet56 the budgets that 256 find change the output 5 % less."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """Where measurements come from.

    Attributes:
        network: The analysed network.
        options: The user's choices.
        evidence: What rankings and errors follow from.
        rankings: By group, made when they are asked for.
        orders: Their orders, made when they are asked for.
        store: What keeps activations below a limit.
        tick: Told (trials done, trials).
        team: Processes that measure on other inputs.
    """

    network: FxNetwork
    options: Options
    evidence: Gatherer
    rankings: Mapping[str, Ranking]
    orders: Orders
    store: Store
    tick: Tick
    team: Team

    def budget(
        self,
        batches: Sequence[Inputs],
        outputs: Sequence[Any],
        verification: tuple[Sequence[Inputs], Sequence[Tensor] | None],
        step: int,
    ) -> Budget:
        """All of it; nothing is measured before it is asked for.

        Args:
            batches: Calibration inputs.
            outputs: What the original network makes of them.
            verification: Inputs on which accuracy is measured, and their labels.
            step: Samples that the network takes at least.
        """
        few = -(-(self._samples(batches) - self.team.rank) // self.team.size)
        some = head(batches, step * max(1, -(-few // step)))
        inputs, labels = verification
        options = self.options
        return Budget(
            size=TARGETS[MEASURED.get(options.target, options.target)](
                self.network, self.orders, batches[0], intercepts=options.settings.intercept and options.reweight
            ),
            error=Errors(tuple(group.name for group in self.network.channels.groups), self._errors),
            accuracy=self._trial(lambda: self._agreement(outputs, len(batches[0]), labels), inputs),
            change=self._trial(lambda: self._change(outputs, batches, some), some),
        )

    def _samples(self, batches: Sequence[Inputs]) -> int:
        """Inputs on which the change of the output is measured: fewer where there are many groups to measure.

        What runs behind a group is half of the network on average.
        """
        (samples,) = self.team.numbers(sum(map(len, batches)))
        measured = len(self.network.channels.groups) * len(PROBES)
        return min(max(LEAST_TRIAL_SAMPLES, round(2 * TRIAL_PASSES * samples / measured)), MOST_TRIAL_SAMPLES)

    def _errors(self, name: str) -> NDArray[np.float64]:
        (group,) = (group for group in self.network.channels.groups if group.name == name)
        return self.evidence.errors(group, self.rankings[name], reweight=self.options.reweight)

    def _patches(self, group: Group, alive: NDArray[np.bool_]) -> dict[str, Tensor]:
        if self.options.reweight:
            return self.evidence.reweighter.patches(group, alive)
        return keeping(self.network, self.rankings)(group, alive)

    def _change(self, outputs: Sequence[Any], batches: Sequence[Inputs], some: Sequence[Inputs]) -> Metric:
        return output_change(outputs, [*map(len, batches)], sum(map(len, some)), self.team)

    def _agreement(self, outputs: Sequence[Any], samples: int, labels: Sequence[Tensor] | None) -> Metric:
        scores = tensors_of(outputs[0])[0 if labels else scores_at(outputs, self.team)]
        check_scores(scores, samples, where="budget", remedy="use budget output or error")
        for classes in labels or ():
            check_classes(classes, scores)
        return agreement(outputs, labels, self.team)

    def _trial(self, made: Callable[[], Metric], batches: Sequence[Inputs]) -> Trial:
        """A trial whose metric is made when it is asked for: one that no rule asks for may not fit the network."""
        metric = functools.cache(made)
        found: dict[tuple[str, int], float] = {}

        def measure(sizes: Sizes) -> dict[str, NDArray[np.float64]]:
            new = {group: fresh for group, ks in sizes.items() if (fresh := [k for k in ks if (group, k) not in found])}
            if new:
                measured = trials(
                    self.network, self._patches, self.orders, new, batches, metric(), self.tick, self.store
                )
                for group, values in measured.items():
                    found.update({(group, k): value for k, value in zip(new[group], values.tolist(), strict=True)})
            return {group: np.asarray([found[group, k] for k in ks]) for group, ks in sizes.items()}

        return measure
