"""What a selector is: a row saying what it needs, and a function that ranks the units of one group."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from subprune_fx.numerics.elimination import Part

Keep = dict[str, int]
"""Units to keep by group."""


class Need(enum.Enum):
    """What the pipeline has to gather before a selector can rank; nothing else is computed."""

    MOMENTS = "second moments of the consumers' inputs"
    WEIGHTS = "the consumers' weights"
    ACTIVATIONS = "relative contributions to the consumers' outputs, input by input"
    GRADIENTS = "gradients of the loss with respect to the consumers' inputs"
    LOSS = "the loss of the network with some units gone"
    TRAINING = "labelled training inputs besides the calibration inputs"


LABELLED = frozenset({Need.GRADIENTS, Need.LOSS})
"""Needs that cannot be met without the class of each calibration input."""


@dataclasses.dataclass(frozen=True)
class Readout:
    """Outgoing weights: what one consumer (or one of its channel groups) makes of the units.

    Attributes:
        weight: (d, m), float64.
        unit: Which unit each of the d columns of its input belongs to, (d,), int64.
    """

    weight: Tensor
    unit: Tensor


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much of a consumer's output a unit makes up at most (Liebenwein et al. 2020, Definition 1).

    Attributes:
        largest: By unit, between 0 and 1, (units,), float64.
        patches: Positions of the consumer's output for one sample.
        taps: Columns per input channel.
    """

    largest: Tensor
    patches: int
    taps: int


class Losses(Protocol):
    """The cross-entropy of the network when some units of a group are gone."""

    def draw(self, generator: torch.Generator) -> Callable[[Tensor, float], float]:
        """Draw a batch; the loss on it when the units in a mask, (units,), bool, are kept, their weights scaled."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What there is to rank one group by. What a row does not ask for is empty.

    Attributes:
        units: How many units the group has.
        generator: Of everything random.
        epsilon: Greedy selectors look at random units / stop * log(1 / epsilon) candidates a step; None: at all.
        blocks: `Need.MOMENTS`.
        readouts: `Need.WEIGHTS`.
        sensitivity: `Need.ACTIVATIONS`.
        taylor: `Need.GRADIENTS`: first-order change of each sample's loss when a unit's activations become zero,
            (samples, units), float64.
        losses: `Need.LOSS`, on the calibration inputs or (`Need.TRAINING`) on the training inputs.
    """

    units: int
    generator: torch.Generator
    epsilon: float | None = None
    blocks: Sequence[Part] = ()
    readouts: Sequence[Readout] = ()
    sensitivity: Sensitivity | None = None
    taylor: Tensor | None = None
    losses: Losses | None = None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A nested order of a group's units.

    Attributes:
        order: Units, the most worth keeping first, (k,), int64.
        score: By unit, higher is more worth keeping; comparable between groups only where the row has a budget
            rule of its own, (units,), float64. Empty where the selector gives none.
        error: Relative error with the first 0..k kept, where ranking gave it, (k + 1,), float64.
        factors: From k, what the kept units' outgoing weights are multiplied by without reweighting, (k,) in the
            order of `order`; None: nothing.
        demand: Of `layersampling`: how many units the group asks for at an error of epsilon; None elsewhere.
    """

    order: Tensor
    score: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    error: Tensor | None = None
    factors: Callable[[int], Tensor] | None = None
    demand: Callable[[float], int] | None = None

    def share(self, count: int) -> float:
        """The error with so many kept, 0 to 1; NaN where ranking gave none.

        What several layers lose adds up: where that is more than 1, it is relative to what they lose with none kept.
        """
        return math.nan if self.error is None else float(self.error[count]) / max(1.0, float(self.error[0]))


Rank = Callable[[Evidence, int | None], Ranking]
"""From evidence and how many units are wanted (None: all of them) to a ranking of at least so many."""

Allot = Callable[[Mapping[str, Ranking], Callable[[Mapping[str, int]], int], int], Keep]
"""From rankings by group, the size of the network under a budget, and the largest size: units to keep by group."""


@dataclasses.dataclass(frozen=True)
class Selector:
    """One row of the table.

    Attributes:
        name: What the user calls it.
        summary: One line.
        needs: What `rank` reads.
        rank: Ranks one group.
        live: Whether a group is ranked again on the pruned-so-far network when the sweep reaches it.
        allot: A budget rule of its own, used unless the user names another.
    """

    name: str
    summary: str
    needs: frozenset[Need]
    rank: Rank
    live: bool = False
    allot: Allot | None = None


def by_score(score: Tensor) -> Ranking:
    """Highest first; among equals the first."""
    return Ranking(torch.argsort(score, descending=True, stable=True), score)
