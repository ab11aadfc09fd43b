"""Gathers what a selector needs from the original network; each kind of evidence on first demand, once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.graph.step import leaves
from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.packed import Waiting
from subprune_fx.numerics.prefixes import kept_errors, reweighted_errors
from subprune_fx.option_values import SEEDS
from subprune_fx.passes.loops import held
from subprune_fx.passes.losses import GroupLosses, Reading, among, within
from subprune_fx.passes.problems import Settings, blocks, column_units, live_units
from subprune_fx.passes.scratch import Scratch
from subprune_fx.passes.sensitivities import sensitivities
from subprune_fx.passes.taylor import taylor
from subprune_fx.passes.trials import Reweighter
from subprune_fx.selectors import Evidence, Need, Ranking, Readout, Sensitivity
from subprune_fx.team import ALONE, Team


class Gatherer:
    """Evidence about the groups of the original network."""

    def __init__(
        self,
        network: FxNetwork,
        moments: Callable[[], Waiting],
        settings: Settings,
        *,
        batches: Sequence[Inputs],
        labels: Sequence[Tensor] | None,
        training: tuple[Inputs, Tensor] | None,
        seed: int,
        epsilon: float | None,
        team: Team = ALONE,
    ) -> None:
        """Set up; computes nothing yet.

        Args:
            network: The analysed network.
            moments: Runs the calibration.
            settings: How least squares are posed.
            batches: Calibration inputs.
            labels: Their classes.
            training: More labelled inputs.
            seed: Of everything random.
            epsilon: Of stochastic greedy; None for exact.
            team: Who has the other batches.
        """
        self.network = network
        self._moments = moments
        self._settings = settings
        self._batches, self._labels, self._training = batches, labels, training
        self._seed = seed
        self._epsilon = epsilon
        self._team = team
        self._reweighter: Reweighter | None = None

    @property
    def reweighter(self) -> Reweighter:
        """New weights by the original network's moments."""
        if self._reweighter is None:
            self._reweighter = Reweighter(self.network, self._moments(), self._settings)
        return self._reweighter

    def forget(self) -> None:
        """Drop the moments until they are asked for again."""
        self._reweighter = None

    @functools.cached_property
    def _taylor(self) -> Tensor:
        assert self._labels is not None
        return taylor(self.network, self._batches, self._labels)

    @functools.cached_property
    def _sensitivities(self) -> dict[str, Tensor]:
        return sensitivities(self.network, self._batches, self._team)

    def gather(self, needs: frozenset[Need]) -> None:
        """Compute, of what is needed, what takes all processes: one that has no group to rank must take part too."""
        for need, find in TOGETHER.items():  # in an order that is the same in all processes
            if need in needs:
                find(self)

    def of(self, group: Group, needs: frozenset[Need]) -> Evidence:
        """What is needed to rank one group."""
        found: dict[str, Any] = {}
        for need, (field, source) in SOURCES.items():
            if need in needs:
                found[field] = source(self, group)
        if Need.LOSS in needs:
            found["losses"] = self._losses(group, self.network.graph_module, needs)
        generator = generator_of(self._seed, self.network.channels.groups.index(group))
        return Evidence(len(group.units), generator, self._epsilon, **found)

    def live(self, group: Group, needs: frozenset[Need], parts: Sequence[Part], scratch: Scratch) -> Evidence:
        """The same on the pruned-so-far network, when the sweep reaches the group's consumer."""
        generator = generator_of(self._seed, self.network.channels.groups.index(group), live=True)
        found: dict[str, Any] = {}
        if Need.MOMENTS in needs:
            found["blocks"] = parts
        if Need.LOSS in needs:
            found["losses"] = self._losses(group, scratch.module, needs, scratch.alive)
        return Evidence(len(group.units), generator, self._epsilon, **found)

    def _losses(
        self, group: Group, module: fx.GraphModule, needs: frozenset[Need], alive: NDArray[np.bool_] | None = None
    ) -> GroupLosses:
        """Of a network in which only the `alive` units are left (None: all)."""
        local = self.network.channels.positions(group)
        readings = []
        for name in group.consumers:
            consumer, reader = self.network.channels.contractions[name], self.network.readers[name]
            units = column_units(consumer, reader.taps, self.network.channels.unit)
            if alive is not None:
                units = live_units(units, alive)
            readings.append(Reading(consumer.weight, reader, local[units]))
        if Need.TRAINING in needs:
            assert self._training is not None
            batch = within(*self._training, len(self._batches[0]))
        else:
            assert self._labels is not None
            batch = among(self._batches, self._labels)
        return GroupLosses(module, group.consumers[0], tuple(readings), batch)

    def taylor(self, group: Group) -> Tensor:
        """First-order change of the loss, (samples, units)."""
        return self._taylor[:, torch.from_numpy(group.units)]

    def sensitivity(self, group: Group) -> Sensitivity:
        """Largest share of a consumer's output; of several consumers the largest."""
        channels = self.network.channels
        local = channels.positions(group)
        largest = np.zeros(len(group.units) + 1)  # the last takes what belongs to other groups
        patches, taps = 1, 1
        for name in group.consumers:
            consumer, reader = channels.contractions[name], self.network.readers[name]
            unit = local[column_units(consumer, reader.taps, channels.unit)]
            np.maximum.at(largest, unit, self._sensitivities[name].numpy())
            shape = leaves(channels.values[name])[0].shape
            patches = max(patches, math.prod(shape) // shape[0] // shape[consumer.axis])
            taps = max(taps, reader.taps)
        return Sensitivity(torch.from_numpy(largest[:-1]), patches, taps)

    def blocks(self, group: Group, *, refit: bool = True) -> list[Part]:
        """Normal equations of the group's consumers, whose other columns are refitted or keep their weights."""
        reweighter, channels = self.reweighter, self.network.channels
        alive = np.ones(channels.prunable.size, dtype=bool)
        settled = ~channels.prunable & refit
        concerned = settled.copy()
        concerned[group.units] = True
        found = [
            block
            for name in self.network.layers(group.consumers)
            for block in blocks(
                group, reweighter.among(name, concerned), channels, settled, alive, reweighter.whole(name)[0]
            )
        ]
        for loop in held(group, self.network, reweighter.loops) if refit else ():
            found += blocks(group, reweighter.looped(loop), channels, settled, alive)
        return found

    def readouts(self, group: Group) -> list[Readout]:
        """Weights of the group's consumers, in the order of `blocks`."""
        local = self.network.channels.positions(group)
        found = []
        for name in self.network.layers(group.consumers):
            consumer, reader = self.network.channels.contractions[name], self.network.readers[name]
            weight = reader.matrix(parameter(self.network.graph_module, consumer.weight)).cpu().double()
            units = local[column_units(consumer, reader.taps, self.network.channels.unit)]
            for matrix, unit in zip(weight, units, strict=True):
                own = torch.from_numpy(np.flatnonzero(unit >= 0))
                if len(own):
                    found.append(Readout(matrix[own], torch.from_numpy(unit)[own]))
        return found

    def errors(self, group: Group, ranking: Ranking, *, reweight: bool) -> NDArray[np.float64]:
        """Relative change of the consumers' inputs (paper eq. 1) with the first 0..n units kept."""
        if ranking.error is not None:
            return ranking.error.numpy()
        if reweight:
            return reweighted_errors(self.blocks(group), ranking.order).numpy()
        weights = [readout.weight for readout in self.readouts(group)]
        return kept_errors(self.blocks(group, refit=False), weights, ranking.order).cummin(0).values.numpy()


SOURCES: dict[Need, tuple[str, Callable[[Gatherer, Group], Any]]] = {
    Need.MOMENTS: ("blocks", Gatherer.blocks),
    Need.WEIGHTS: ("readouts", Gatherer.readouts),
    Need.ACTIVATIONS: ("sensitivity", Gatherer.sensitivity),
    Need.GRADIENTS: ("taylor", Gatherer.taylor),
}
"""By need: the field of `Evidence` that it fills, and from where."""


TOGETHER: dict[Need, Callable[[Gatherer], object]] = {
    Need.MOMENTS: lambda gatherer: gatherer.reweighter,
    Need.ACTIVATIONS: lambda gatherer: gatherer._sensitivities,  # noqa: SLF001 - of this file
}
"""By need: what is computed from all processes' inputs, and so by all of them together."""


def generator_of(seed: int, group: int, *, live: bool = False) -> torch.Generator:
    """Randomness of one group: the same whatever was ranked before it."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + group) * 2 + live) % SEEDS)


class Errors(Mapping[str, NDArray[np.float64]]):
    """Error curves by group, each computed when a budget rule asks for it."""

    def __init__(self, names: Sequence[str], curve: Callable[[str], NDArray[np.float64]]) -> None:
        self._names = names
        self._curve = functools.cache(curve)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._names:
            raise KeyError(name)
        return self._curve(name)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
