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
from subprune_fx.numerics.solve import solve


@dataclasses.dataclass(frozen=True)
class Settings:
    """How least squares are posed.

    Attributes:
        intercept: Explain deviations from the mean only; the consumer's bias takes the mean.
        ridge: Weight of the pull towards the original weights, relative to the mean diagonal of the Gram matrix.
    """

    intercept: bool = True
    ridge: float = DEFAULT_RIDGE


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
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    unit: NDArray[np.int64]
    weight: Tensor

    def reweighted(self, alive: NDArray[np.bool_]) -> Tensor:
        """New weights on the columns whose unit is alive (paper eq. 4), (groups, kept d, m)."""
        mask = alive[self.unit]
        parts = [
            solve(gram, cross, torch.from_numpy(np.flatnonzero(kept)))
            for gram, cross, kept in zip(self.gram, self.cross, mask, strict=True)
        ]
        return torch.stack(parts)


def column_units(consumer: Consumer, taps: int, unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unit of each column of a consumer's design matrix, shape (groups, inputs / groups * taps)."""
    return np.repeat(unit[consumer.labels].reshape(consumer.groups, -1), taps, axis=1)


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
    gram = used.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    cross = used.cross + ridge[:, None, None] * weight
    energy = used.energy.clamp(min=0) + ridge * weight.square().sum((1, 2))
    return Problem(gram, cross, energy, unit, weight)


def own_target(moments: Moments, weight: Tensor) -> Moments:
    """The same input moments with the target B W_0: cross = B'B W_0 (LayerInChange and SeqInChange)."""
    weight = weight.double()
    cross = moments.gram @ weight
    targets = (moments.columns[:, None, :] @ weight)[:, 0, :]
    return dataclasses.replace(moments, cross=cross, targets=targets, energy=(weight * cross).sum((1, 2)).clamp(min=0))


def blocks(group: Group, problem: Problem, channels: ChannelGraph) -> list[Block]:
    """The part of a consumer's problem that one group decides.

    Channels of other groups (a concat, fixed channels) count as kept with their weights: what is left of the target
    is this group's own contribution, Y - B_rest W_rest. Errors are relative to the consumer's whole target.
    """
    local = np.full(channels.prunable.size, -1, dtype=np.int64)
    local[group.units] = np.arange(group.units.size)
    total = float(problem.energy.sum()) or 1.0
    found = []
    for g, unit in enumerate(problem.unit):
        own = np.flatnonzero(local[unit] >= 0)
        if own.size == 0:
            continue
        gram, cross, energy = problem.gram[g], problem.cross[g], float(problem.energy[g])
        if own.size < unit.size:
            rest = torch.from_numpy(np.setdiff1d(np.arange(unit.size), own))
            mine = torch.from_numpy(own)
            weight = problem.weight[g]
            cross = cross[mine] - gram[mine][:, rest] @ weight[rest]
            gram = gram[mine][:, mine]
            energy = float((weight[mine] * (gram @ weight[mine])).sum())
        found.append(Block(gram, cross, torch.from_numpy(local[unit[own]]), energy, 1.0 / total))
    return found
