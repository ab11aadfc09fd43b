"""Paper eq. (6): every layer, pruned alone, keeps the same accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.passes.budget import Budget, Sizes, first, first_fit
from subprune_fx.selectors import Keep

ALPHAS: tuple[float, ...] = (0.01, 0.05, 0.075, *(i / 20 for i in range(2, 21)))
"""Keep fractions of the paper's Appendix G."""

AT_ONCE = 3
"""Sizes of a group that are measured before it is asked which ones still matter.

A group's least-squares problem is set up for each round, so that a plain bisection is not what is cheapest.
"""

Drops = Mapping[str, NDArray[np.float64]]


def accuracy(budget: Budget, target: int) -> Keep:
    """Paper eq. (6): the smallest tau for which every layer, pruned alone to P >= P_orig - tau, makes the size fit.

    P grows with k, so what is not measured lies between its neighbours that are, and tau between the smallest that fits
    with the better and with the worse of these. Only sizes on which a tau in between would decide are measured, until
    there are none. Few fractions leave some of the size unused; as in the paper's code it goes to the layers that keep
    most of themselves.
    """
    ks = {group: sorted({max(1, round(alpha * n)) for alpha in ALPHAS}) for group, n in budget.size.units.items()}
    smallest = {group: sizes[0] for group, sizes in ks.items()}
    if budget.size.of(smallest) > target:
        return smallest
    measured = {group: np.full(len(sizes), np.nan) for group, sizes in ks.items()}
    wanted = {group: [*_spread(range(len(sizes) - 1)), len(sizes) - 1] for group, sizes in ks.items()}
    while any(wanted.values()):
        found = budget.accuracy({group: [ks[group][i] for i in places] for group, places in wanted.items()})
        for group, values in found.items():
            measured[group][wanted[group]] = values
        known = {group: bounds(values) for group, values in measured.items()}
        least, most = ({group: ends[side] for group, ends in known.items()} for side in range(2))
        lowest, _ = _smallest_tau(budget, target, ks, least)
        highest, keep = _smallest_tau(budget, target, ks, most)
        wanted = {
            group: _spread(np.flatnonzero((least[group] <= highest) & (most[group] > np.maximum(least[group], lowest))))
            for group in ks
        }
    return _filled(budget, target, keep)


def bounds(measured: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much accuracy is lost at growing k: at least, and at most (infinity below what is measured).

    Args:
        measured: Accuracy by k, NaN where not known; the last is. Made monotone by a running maximum.
    """
    known = np.flatnonzero(~np.isnan(measured))
    values = np.maximum.accumulate(measured[known])
    above = np.searchsorted(known, np.arange(measured.size))
    below = np.searchsorted(known, np.arange(measured.size), side="right")
    return values[-1] - values[above], values[-1] - np.concatenate([[-np.inf], values])[below]


def _smallest_tau(budget: Budget, target: int, ks: Sizes, drops: Drops) -> tuple[float, Keep]:
    limits = np.unique(np.concatenate(list(drops.values()))).tolist()

    def at(tau: float) -> Keep:
        return {group: ks[group][first(drop <= tau)] for group, drop in drops.items()}

    return first_fit(budget, target, at, limits)


def _spread(places: Sequence[int] | NDArray[np.intp]) -> list[int]:
    """At most `AT_ONCE` of some places, evenly spread."""
    count = min(AT_ONCE, len(places))
    return [int(places[(2 * i + 1) * len(places) // (2 * count)]) for i in range(count)]


def _filled(budget: Budget, target: int, keep: Keep) -> Keep:
    """Give what is left of the size to one group after the other, largest kept fraction first."""
    for group in sorted(keep, key=lambda name: keep[name] / budget.size.units[name], reverse=True):
        low, high = keep[group], budget.size.units[group]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if budget.size.of({**keep, group: middle}) <= target else (low, middle - 1)
        keep = {**keep, group: low}
    return keep
