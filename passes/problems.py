"""Least-squares problems of consumers and groups, assembled from moments (paper eq. 1 and section 5.1)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.graph.channels import ChannelGraph, Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.greedy import Block
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.ridge import DEFAULT_RIDGE
from subprune_fx.numerics.solve import factor

RESOLUTION = 1e-13
"""Deviations below this fraction of the mean square are rounding: of inputs that do not vary, nothing is explained."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How least squares are posed.

    Attributes:
        intercept: Explain deviations from the mean only; the consumer's bias takes the mean.
        feedback: Where a consumer's output is added to another value, aim at the original sum: later layers
            make up for the errors of earlier ones.
        rounds: How often a consumer is refitted where its activation is flat: there an output counts as right
            on the flat side. 0: its output before the activation is fitted as it is.
        ridge: Weight of the pull towards the original weights, relative to the mean diagonal of the Gram matrix.
    """

    intercept: bool = True
    feedback: bool = True
    rounds: int = 2
    ridge: float = DEFAULT_RIDGE

    def of(self, takes_intercept: bool) -> Settings:
        """The settings for a consumer that has a place for an intercept, or none."""
        return self if takes_intercept else dataclasses.replace(self, intercept=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """min_W ||Y - B W||^2 + lambda ||W - W_0||^2 per channel group of a consumer, as normal equations.

    Expanding gives gram = B'B + lambda I and cross = B'Y + lambda W_0, so a consumer that keeps all its channels and
    whose target is B W_0 keeps its weights exactly.

    Attributes:
        gram: (groups, d, d), float64.
        cross: (groups, d, m), float64.
        energy: ||Y||^2 + lambda ||W_0||^2, shape (groups,).
        unit: Unit of each column, shape (groups, d).
        weight: W_0, shape (groups, d, m).
        ridge: lambda, shape (groups,).
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    unit: NDArray[np.int64]
    weight: Tensor
    ridge: Tensor

    def kept(self, alive: NDArray[np.bool_]) -> Tensor:
        """Columns whose unit is alive, (groups, kept d), int64; every group has as many."""
        return torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in alive[self.unit]]))

    def only(self, alive: NDArray[np.bool_]) -> Problem:
        """The problem on the columns whose unit is alive."""
        kept = self.kept(alive)
        rows = torch.arange(len(kept))[:, None]
        return dataclasses.replace(
            self,
            gram=self.gram[rows[:, :, None], kept[:, :, None], kept[:, None, :]],
            cross=self.cross[rows, kept],
            unit=np.take_along_axis(self.unit, kept.numpy(), 1),
            weight=self.weight[rows, kept],
        )

    def aimed(self, moments: Moments, settings: Settings) -> Problem:
        """The same columns with the targets that `moments` hold instead."""
        return pose(moments, self.weight, self.unit, settings)

    def solution(self) -> Tensor:
        """argmin_W (paper eq. 4), (groups, d, m)."""
        return torch.cholesky_solve(self.cross, factor(self.gram))

    def reweighted(self, alive: NDArray[np.bool_]) -> Tensor:
        """New weights on the columns whose unit is alive, (groups, kept d, m)."""
        return self.only(alive).solution()


def column_units(consumer: Consumer, taps: int, unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unit of each column of a consumer's design matrix, shape (groups, inputs / groups * taps)."""
    return np.repeat(unit[consumer.labels].reshape(consumer.groups, -1), taps, axis=1)


def live_units(units: NDArray[np.int64], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The `column_units` that are still there, (groups, live columns)."""
    return units[alive[units]].reshape(units.shape[0], -1)


def pose(moments: Moments, weight: Tensor, unit: NDArray[np.int64], settings: Settings) -> Problem:
    """The problem whose target is what `moments` hold.

    Args:
        moments: Of the consumer's input B and its target Y.
        weight: W_0, (groups, d, m).
        unit: By column.
        settings: Intercept and ridge.
    """
    used = moments.centred() if settings.intercept else moments
    weight = weight.double()
    diagonal = used.gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    ridge = settings.ridge * diagonal
    if settings.intercept:
        ridge = torch.maximum(ridge, RESOLUTION * moments.gram.diagonal(dim1=1, dim2=2).mean(1))
    gram = used.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    cross = used.cross + ridge[:, None, None] * weight
    energy = used.energy.clamp(min=0) + ridge * weight.square().sum((1, 2))
    return Problem(gram, cross, energy, unit, weight, ridge)


def own_target(moments: Moments, weight: Tensor) -> Moments:
    """The same input moments with the target B W_0: cross = B'B W_0 (LayerInChange and SeqInChange)."""
    weight = weight.double()
    cross = moments.gram @ weight
    targets = (moments.columns[:, None, :] @ weight)[:, 0, :]
    return dataclasses.replace(moments, cross=cross, targets=targets, energy=(weight * cross).sum((1, 2)).clamp(min=0))


def blocks(
    group: Group, problem: Problem, channels: ChannelGraph, settled: NDArray[np.bool_], alive: NDArray[np.bool_]
) -> list[Block]:
    """The part of a consumer's problem that one group decides; errors are relative to the consumer's whole target.

    Channels that are sure to stay are refitted together with what is kept, so they are eliminated first. Those of other
    groups that are still to be decided count with their present weights: they cannot be relied on to stand in for this
    group's, since the same will be expected of it.

    Args:
        group: To be decided.
        problem: Of one of its consumers.
        channels: The dependency graph.
        settled: By unit, whether it is sure to stay.
        alive: By unit, whether it is there at all.
    """
    local = np.full(channels.prunable.size, -1, dtype=np.int64)
    local[group.units] = np.arange(group.units.size)
    total = float(problem.energy.sum()) or 1.0
    found = []
    for g, unit in enumerate(problem.unit):
        if not (local[unit] >= 0).any():
            continue
        system = _System(problem.gram[g], problem.cross[g], float(problem.energy[g]), unit, problem.weight[g])
        system = system.only(alive[unit])
        system = system.fixed(~settled[system.unit] & (local[system.unit] < 0))
        system = system.eliminated(local[system.unit] < 0)
        columns = torch.from_numpy(local[system.unit])
        found.append(Block(system.gram, system.cross, columns, max(system.energy, 0.0), 1.0 / total))
    return found


@dataclasses.dataclass(frozen=True)
class _System:
    """Normal equations of one channel group of a consumer, with the unit and the original weights of each column."""

    gram: Tensor
    cross: Tensor
    energy: float
    unit: NDArray[np.int64]
    weight: Tensor

    def only(self, mask: NDArray[np.bool_]) -> _System:
        """The columns in `mask`, without the others."""
        if mask.all():
            return self
        index = torch.from_numpy(np.flatnonzero(mask))
        return _System(self.gram[index][:, index], self.cross[index], self.energy, self.unit[mask], self.weight[index])

    def fixed(self, mask: NDArray[np.bool_]) -> _System:
        """What is left of the target when the columns in `mask` keep their weights."""
        if not mask.any():
            return self
        index = torch.from_numpy(np.flatnonzero(mask))
        held = self.weight[index]
        explained = self.gram[:, index] @ held
        energy = self.energy + float((held * (explained[index] - 2 * self.cross[index])).sum())
        return dataclasses.replace(self, cross=self.cross - explained, energy=energy).only(~mask)

    def eliminated(self, mask: NDArray[np.bool_]) -> _System:
        """What is left when the columns in `mask` have the best weights, whatever those of the others."""
        if not mask.any():
            return self
        gone, left = (torch.from_numpy(np.flatnonzero(part)) for part in (mask, ~mask))
        root = factor(self.gram[gone][:, gone])
        rows = torch.linalg.solve_triangular(root, self.gram[gone][:, left], upper=False)
        known = torch.linalg.solve_triangular(root, self.cross[gone], upper=False)
        return _System(
            self.gram[left][:, left] - rows.mT @ rows,
            self.cross[left] - rows.mT @ known,
            self.energy - float(known.square().sum()),
            self.unit[~mask],
            self.weight[left],
        )
