"""Budgets that change the network's output least."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from subprune_fx.passes.budget import Budget, Curves
from subprune_fx.passes.size import SizeModel
from subprune_fx.selectors import Keep

PROBES: tuple[float, ...] = (0.06, 0.25, 0.75)
"""Keep fractions at which `output` measures a group; between them the group's error curve interpolates.

On ResNet56 and LeNet the budgets that seven fractions find change the output 0 to 2 % less.
"""

AT_FIRST = 2
"""How many of them are measured for every group, the largest first."""


def output(budget: Budget, target: int) -> Keep:
    """Least predicted change of the network's output: sum over groups of D_g(k_g), under the size constraint.

    D_g is measured at a few k with only that group pruned, and interpolated along the group's error curve (both are
    monotone, and one drives the other). Greedy descent: take the step that costs least output change per parameter; the
    last one may save more than is asked for, so single units come back while they fit.

    The smallest of these k are measured only for groups that the descent takes below the others: above them D_g does
    not depend on it.
    """
    probes = {group: _probes(curve) for group, curve in budget.error.items()}
    wanted = {group: ks[-AT_FIRST:] for group, ks in probes.items()}
    measured: dict[str, dict[int, float]] = {group: {} for group in probes}
    while any(wanted.values()):
        for group, values in budget.change(wanted).items():
            measured[group].update(zip(wanted[group], values.tolist(), strict=True))
        cost = {group: _interpolated(curve, measured[group]) for group, curve in budget.error.items()}
        keep = _descend(budget, target, cost)
        wanted = {group: _deeper(ks, min(measured[group]), keep[group]) for group, ks in probes.items()}
    return _climbed(budget, target, keep, cost)


def _deeper(probes: list[int], lowest: int, now: int) -> list[int]:
    """The next smaller probe, where a descent that ended at `now` has looked below the lowest one measured."""
    return [k for k in probes if k < lowest][-1:] if _ahead(now)[-1] < lowest else []


def _ahead(now: int) -> list[int]:
    """Where a step may lead: 1 unit, 4 or 16 % of them fewer."""
    return [max(1, now - max(1, round(fraction * now))) for fraction in (0.0, 0.04, 0.16)]


def _probes(curve: NDArray[np.float64]) -> list[int]:
    """A few k spread over the error curve's range, from 1 to n - 1."""
    n = curve.size - 1
    return sorted({min(max(1, round(fraction * n)), max(1, n - 1)) for fraction in PROBES})


def _interpolated(curve: NDArray[np.float64], measured: dict[int, float]) -> NDArray[np.float64]:
    """Output change at k = 0..n: log-log interpolation against the error curve, made non-increasing in k."""
    floor = 1e-12
    ks = np.sort(np.fromiter(measured, dtype=np.int64))
    values = np.asarray([measured[k] for k in ks.tolist()])
    known = np.maximum.accumulate(values[::-1])[::-1]
    x, y = np.log(curve[ks] + floor)[::-1], np.log(known + floor)[::-1]
    all_x = np.log(curve + floor)
    slopes = np.diff(y) / np.maximum(np.diff(x), 1e-6) if x.size > 1 else np.ones(1)
    inside = np.interp(all_x, x, y)
    low, high = all_x < x[0], all_x > x[-1]
    inside[low] = y[0] + (all_x[low] - x[0]) * max(slopes[0], 0.5)
    inside[high] = y[-1] + (all_x[high] - x[-1]) * max(slopes[-1], 0.5)
    cost = np.exp(np.minimum(inside, 700))  # the largest power of e there is
    cost[-1] = 0.0
    return np.minimum.accumulate(cost)


def _descend(budget: Budget, target: int, cost: Curves) -> Keep:
    """From all units kept, repeat the step with the least added cost per saved parameter until the size fits."""
    size, keep = budget.size, dict(budget.size.units)
    neighbours = {group: size.neighbours(group) for group in keep}
    prices: dict[str, tuple[float, int]] = {}
    while True:
        dimensions = size.dimensions(keep)
        if size.sum(dimensions) <= target:
            return keep
        for group, now in keep.items():
            if group not in prices:
                prices[group] = _cheapest(size, dimensions, group, now, cost[group])
        group = min(prices, key=lambda name: prices[name][0])
        price, fewer = prices[group]
        if math.isinf(price):
            return keep
        keep[group] = fewer
        for name in neighbours[group]:
            prices.pop(name, None)


def _climbed(budget: Budget, target: int, keep: Keep, cost: Curves) -> Keep:
    """Add the unit that lowers the cost most per parameter, while one fits."""
    keep, size = dict(keep), budget.size
    while True:
        now = size.of(keep)
        best, gain = "", -1.0
        for group, k in keep.items():
            if k == size.units[group]:
                continue
            more = size.of({**keep, group: k + 1})
            worth = float(cost[group][k] - cost[group][k + 1]) / max(1, more - now)
            if more <= target and worth > gain:
                best, gain = group, worth
        if not best:
            return keep
        keep[best] += 1


def _cheapest(
    size: SizeModel, dimensions: NDArray[np.int64], group: str, now: int, cost: NDArray[np.float64]
) -> tuple[float, int]:
    """Least price of a step of one group, and where it leads."""
    if now <= 1:
        return math.inf, now
    fewer = _ahead(now)
    saved = size.savings(dimensions, group, now, fewer).tolist()
    prices = [(float(cost[k] - cost[now]) / save, k) for k, save in zip(fewer, saved, strict=True) if save > 0]
    return min(prices, default=(math.inf, now))
