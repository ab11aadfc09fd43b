"""What a budget rule decides from, and what several rules are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.passes.size import SizeModel
from subprune_fx.selectors import Keep

Curves = Mapping[str, NDArray[np.float64]]
Sizes = Mapping[str, Sequence[int]]
"""Units to keep, none or several by group."""
Trial = Callable[[Sizes], dict[str, NDArray[np.float64]]]
"""From sizes to what was measured for each with only that group pruned."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a rule decides from.

    Attributes:
        size: Parameters or multiply-adds under any budget.
        error: By group, relative error at k = 0..n of the group's consumers (one greedy run), non-increasing.
        accuracy: Runs the network with one group pruned at a time: by group and k, the accuracy (or agreement).
        change: The same, giving the relative squared change of the network's output.
    """

    size: SizeModel
    error: Curves
    accuracy: Trial
    change: Trial


Rule = Callable[[Budget, int], Keep]
"""From what may be measured and the largest size to units to keep by group."""


def scaled(budget: Budget, target: int, sizes: Mapping[str, int]) -> Keep:
    """The same fraction of each of `sizes`, the largest that fits."""
    alphas = sorted({k / n for n in sizes.values() for k in range(1, n + 1)}, reverse=True)
    return first_fit(budget, target, lambda alpha: fraction(sizes, alpha), alphas)[1]


def fraction(sizes: Mapping[str, int], alpha: float) -> Keep:
    """The same fraction of every group: k = max(1, floor(alpha n))."""
    return {group: max(1, math.floor(alpha * n + 1e-9)) for group, n in sizes.items()}  # k / n * n may be below k


def first(suffices: NDArray[np.bool_]) -> int:
    """The first that does, else the last: rounding may leave a little error with everything kept."""
    return int(np.argmax(suffices)) if suffices.any() else suffices.size - 1


def first_fit(
    budget: Budget, target: int, rule: Callable[[float], Keep], levels: Sequence[float]
) -> tuple[float, Keep]:
    """The first of `levels` that fits, and what it keeps; else the last (binary search).

    Args:
        budget: Has the sizes.
        target: The largest that fits.
        rule: Units to keep by level.
        levels: Ordered from the largest to the smallest network.
    """
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        fits = budget.size.of(rule(levels[middle])) <= target
        low, high = (low, middle) if fits else (middle + 1, high)
    return levels[low], rule(levels[low])
