"""Least-squares problems of consumers and groups, assembled from moments (paper eq. 1 and section 5.1)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.graph.channels import ChannelGraph, Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.cross_validation import least_error
from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.normal import Equations, Normal

RESOLUTION = 1e-13
"""Deviations below this fraction of the mean square are rounding: of inputs that do not vary, nothing is explained."""

ROUNDING = 1e-9
"""Ridges that differ less are the same, taken of the same columns twice."""

SILENT = 1e-12
"""Weight of the error of a consumer that reads zeros (a recurrent cell at first): it counts where no other does."""

AMPLE = 32
"""Rows a column from which weights are told from noise without a ridge."""

LARGE = 2048
"""Rows and columns whose eigenvalues take longer than the rest of a consumer's least squares."""

LEAST_RIDGE = 1e-3
"""Ridge where nothing else is said, of `MANY` inputs and more."""

MANY = 512
"""Calibration inputs with which weights are hardly noise. With n fewer the ridge is (MANY / n)^2 times as large: the
noise in weights grows with 1 / n, and so does what the inputs that they were fitted to hide of it when widths are
chosen. With 64 inputs ResNet56 on CIFAR-10 comes to 84.0, 71.4 and 56.4 % at c = 2, 4 and 8 instead of 82.9, 67.4 and
53.5 (seeds 42 to 44)."""

MOST = 64.0
"""How many times as large it becomes: more gains nothing, and takes from channels that could stand in for others."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How least squares are posed.

    Attributes:
        intercept: Explain deviations from the mean only; the consumer's bias takes the mean.
        feedback: Where a consumer's output is added to another value, aim at the original sum: later layers
            make up for the errors of earlier ones.
        rounds: How often a consumer is refitted where its activation is flat: there an output counts as right
            on the flat side. 0: its output before the activation is fitted as it is.
        ridge: Weight of the pull towards the original weights, relative to the mean diagonal of the Gram matrix. None:
            as is good for so many `samples`, and where each gives a consumer one row as much more as cross-validation
            says.
        rows: How many positions of a convolution's output are enough for each column of its design matrix, see
            `passes.thin`; 0: all are looked at.
        samples: Calibration inputs.
    """

    intercept: bool = True
    feedback: bool = True
    rounds: int = 2
    ridge: float | None = None
    rows: int = 64
    samples: int = MANY

    @property
    def pull(self) -> float:
        """The ridge to begin with."""
        few = min(max(1.0, (MANY / self.samples) ** 2), MOST)
        return LEAST_RIDGE * few if self.ridge is None else self.ridge

    def of(self, takes_intercept: bool) -> Settings:
        """The settings for a consumer that has a place for an intercept, or none."""
        return self if takes_intercept else dataclasses.replace(self, intercept=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """min_W ||Y - B W||^2 + lambda ||W - W_0||^2 per channel group of a consumer.

    Attributes:
        equations: The regressions.
        unit: Unit of each column, shape (groups, d).
        weight: W_0, shape (groups, d, m).
        ridge: lambda, shape (groups,).
        validated: Whether the data have chosen it.
    """

    equations: Equations
    unit: NDArray[np.int64]
    weight: Tensor
    ridge: Tensor
    validated: bool = False

    @property
    def energy(self) -> Tensor:
        """||Y||^2 + lambda ||W_0||^2, shape (groups,)."""
        return self.equations.energy

    @property
    def target(self) -> float:
        """The energy of all groups; 0 where it is the ridge's alone, since all that is read is zero."""
        pull = float(self.ridge @ torch.linalg.vector_norm(self.weight, dim=(1, 2), dtype=torch.float64).square())
        total = float(self.energy.sum())
        return total if total > pull * (1 + ROUNDING) else 0.0

    def kept(self, alive: NDArray[np.bool_]) -> Tensor:
        """Columns whose unit is alive, (groups, kept d), int64; every group has as many."""
        return torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in alive[self.unit]]))

    def only(self, alive: NDArray[np.bool_]) -> Problem:
        """The problem on the columns whose unit is alive."""
        if alive[self.unit].all():
            return self
        kept = self.kept(alive)
        rows = torch.arange(len(kept))[:, None]
        return Problem(
            self.equations.only(kept),
            np.take_along_axis(self.unit, kept.numpy(), 1),
            self.weight[rows, kept],
            self.ridge,
        )

    def aimed(self, moments: Collected, settings: Settings) -> Problem:
        """The same columns with the targets that `moments` hold instead, whose inputs' products may be gone."""
        if not isinstance(self.equations, Normal) or not isinstance(moments, Moments):
            found = pose(moments, self.weight, self.unit, settings, ridge=self.ridge if self.validated else None)
            return dataclasses.replace(found, validated=self.validated)
        level = self.equations.mean_diagonal() - self.ridge
        least = RESOLUTION * (level + moments.diagonal_of_means()) if settings.intercept else 0.0
        ridge, equations = self.ridge if self.validated else _ridge(level, least, settings), self.equations
        if torch.allclose(ridge, self.ridge, rtol=ROUNDING, atol=0):
            ridge = self.ridge
        else:
            equations = equations.pulled(ridge - self.ridge)
        about = moments.targets_about(centre=settings.intercept)
        return dataclasses.replace(self, equations=equations.aimed(about.cross, about.energy, ridge), ridge=ridge)

    def cross_validated(self, rows: int) -> Problem:
        """The same with the ridge that cross-validation says, if that is more.

        Args:
            rows: How many there are, all independent of each other.
        """
        smaller = min(rows, self.unit.shape[1])
        if smaller > LARGE or rows > AMPLE * self.unit.shape[1]:
            return self
        ridge = torch.tensor(
            [
                least_error(self.equations.system(group).spectrum(own), own, rows)
                for group, own in enumerate(self.ridge.tolist())
            ],
            dtype=torch.float64,
        )
        equations = self.equations.pulled(ridge - self.ridge)
        return dataclasses.replace(self, equations=equations, ridge=ridge, validated=True)

    def solution(self) -> Tensor:
        """argmin_W (paper eq. 4), (groups, d, m)."""
        return self.equations.solution()

    def reweighted(self, alive: NDArray[np.bool_]) -> Tensor:
        """New weights on the columns whose unit is alive, (groups, kept d, m)."""
        return self.equations.only(self.kept(alive)).solution()

    def refitted(self, alive: NDArray[np.bool_]) -> Tensor:
        """The same, and zero on the other columns, (groups, d, m)."""
        found = torch.zeros_like(self.weight)
        found[torch.from_numpy(alive[self.unit])] = self.reweighted(alive).flatten(0, 1)
        return found


def column_units(consumer: Consumer, taps: int, unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unit of each column of a consumer's design matrix, shape (groups, inputs / groups * taps)."""
    units = np.repeat(unit[consumer.labels].reshape(consumer.groups, -1), taps, axis=1)
    return np.tile(units, (consumer.blocks, 1))


def live_units(units: NDArray[np.int64], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The `column_units` that are still there, (groups, live columns)."""
    return units[alive[units]].reshape(units.shape[0], -1)


def pose(
    moments: Collected,
    weight: Tensor,
    unit: NDArray[np.int64],
    settings: Settings,
    *,
    own: bool = False,
    ridge: Tensor | None = None,
) -> Problem:
    """The problem whose target is what `moments` hold.

    Args:
        moments: Of the consumer's input B and its target Y.
        weight: W_0, (groups, d, m).
        unit: By column.
        settings: Intercept and ridge.
        own: Whether of the moments no more than `means` is needed behind: there is no room for their products twice.
        ridge: lambda, (groups,); None: as the settings say.
    """
    least = RESOLUTION * moments.mean_diagonal() if settings.intercept else 0.0
    used = moments.centred(own=own) if settings.intercept else moments
    weight = used.weights(weight)
    ridge = _ridge(used.mean_diagonal(), least, settings) if ridge is None else ridge
    return Problem(used.normal(weight, ridge, own=own or settings.intercept), unit, weight, ridge)


def _ridge(level: Tensor, least: Tensor | float, settings: Settings) -> Tensor:
    """The pull, by the mean diagonal of the Gram matrix."""
    return (settings.pull * level.clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=least)


def blocks(
    group: Group,
    problem: Problem,
    channels: ChannelGraph,
    settled: NDArray[np.bool_],
    alive: NDArray[np.bool_],
    energy: float | None = None,
) -> list[Part]:
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
        energy: Of the consumer's whole `target`; None: that of `problem`.
    """
    local = channels.positions(group)
    target = problem.target if energy is None else energy
    scale = 1.0 / target if target else SILENT / (float(problem.energy.sum()) or 1.0)
    found = []
    for g, columns in enumerate(problem.unit):
        if not (local[columns] >= 0).any():
            continue
        system, unit = problem.equations.system(g), columns
        if not alive[unit].all():
            system, unit = system.only(_where(alive[unit])), unit[alive[unit]]
        held, gone = ~settled[unit] & (local[unit] < 0), local[unit] < 0
        if held.any():
            system, unit, gone = system.fixed(_where(held), _where(~held)), unit[~held], gone[~held]
        if gone.any():
            system, unit = system.eliminated(_where(gone), _where(~gone)), unit[~gone]
        found.append(system.part(torch.from_numpy(local[unit]), scale))
    return found


def _where(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))
