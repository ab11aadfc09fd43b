"""How many units each group keeps so that the network meets the ratio: one rule a function, listed in `BUDGETS`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.errors import SubpruneError
from subprune_fx.passes.size import SizeModel

ALPHAS: tuple[float, ...] = (0.01, 0.05, 0.075, *(i / 20 for i in range(2, 21)))
"""Keep fractions of the paper's Appendix G."""

PROBES: tuple[float, ...] = (0.06, 0.25, 0.75)
"""Keep fractions at which `output` measures a group; between them the group's error curve interpolates.

On ResNet56 and LeNet the budgets that seven fractions find change the output 0 to 2 % less.
"""

Keep = dict[str, int]
Curves = Mapping[str, NDArray[np.float64]]
Sizes = tuple[tuple[str, tuple[int, ...]], ...]
Trial = Callable[[Sizes], dict[str, NDArray[np.float64]]]
"""From units to keep, several by group, to what was measured for each with only that group pruned."""


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


def uniform(budget: Budget, target: int) -> Keep:
    """Equal fractions: the largest alpha with k = max(1, floor(alpha n)) that fits."""
    return _scaled(budget, target, budget.size.units)


def _scaled(budget: Budget, target: int, sizes: Mapping[str, int]) -> Keep:
    """The same fraction of each of `sizes`, the largest that fits."""
    alphas = sorted({k / n for n in sizes.values() for k in range(1, n + 1)}, reverse=True)
    return _first_fit(budget, target, lambda alpha: fraction(sizes, alpha), alphas)


def fraction(sizes: Mapping[str, int], alpha: float) -> Keep:
    """The same fraction of every group: k = max(1, floor(alpha n))."""
    return {group: max(1, math.floor(alpha * n + 1e-9)) for group, n in sizes.items()}  # k / n * n may be below k


def error(budget: Budget, target: int) -> Keep:
    """Every group down to the same relative error (paper section 5.2), the smallest that fits."""
    limits = np.unique(np.concatenate([curve[1:] for curve in budget.error.values()])).tolist()

    def at(limit: float) -> Keep:
        return {group: max(1, _first(curve <= limit + 1e-15)) for group, curve in budget.error.items()}

    return _first_fit(budget, target, at, limits)


def _first(suffices: NDArray[np.bool_]) -> int:
    """The first that does, else the last: rounding may leave a little error with everything kept."""
    return int(np.argmax(suffices)) if suffices.any() else suffices.size - 1


def accuracy(budget: Budget, target: int) -> Keep:
    """Paper eq. (6): the smallest tau for which every layer, pruned alone to P >= P_orig - tau, makes the size fit.

    P is measured at the fractions of Appendix G and made monotone by a running maximum, so that the smallest k
    whose accuracy suffices is well defined. Few fractions leave some of the size unused; as in the paper's code it goes
    to the layers that keep most of themselves.
    """
    ks = {group: sorted({max(1, round(alpha * n)) for alpha in ALPHAS}) for group, n in budget.size.units.items()}
    measured = {group: np.maximum.accumulate(curve) for group, curve in budget.accuracy(_frozen(ks)).items()}
    drops = {group: curve[-1] - curve for group, curve in measured.items()}
    limits = np.unique(np.concatenate(list(drops.values()))).tolist()

    def at(tau: float) -> Keep:
        return {group: ks[group][_first(drop <= tau)] for group, drop in drops.items()}

    return _filled(budget, target, _first_fit(budget, target, at, limits))


def output(budget: Budget, target: int) -> Keep:
    """Least predicted change of the network's output: sum over groups of D_g(k_g), under the size constraint.

    D_g is measured at a few k with only that group pruned, and interpolated along the group's error curve (both are
    monotone, and one drives the other). Greedy descent: take the step that costs least output change per parameter; the
    last one may save more than is asked for, so single units come back while they fit.
    """
    probes = {group: _probes(curve) for group, curve in budget.error.items()}
    measured = budget.change(_frozen(probes))
    cost = {
        group: _interpolated(curve, np.asarray(probes[group]), measured[group]) for group, curve in budget.error.items()
    }
    return _climbed(budget, target, _descend(budget, target, cost), cost)


def _filled(budget: Budget, target: int, keep: Keep) -> Keep:
    """Give what is left of the size to one group after the other, largest kept fraction first."""
    for group in sorted(keep, key=lambda name: keep[name] / budget.size.units[name], reverse=True):
        low, high = keep[group], budget.size.units[group]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if budget.size.of({**keep, group: middle}) <= target else (low, middle - 1)
        keep = {**keep, group: low}
    return keep


def _probes(curve: NDArray[np.float64]) -> list[int]:
    """A few k spread over the error curve's range, from 1 to n - 1."""
    n = curve.size - 1
    return sorted({min(max(1, round(fraction * n)), max(1, n - 1)) for fraction in PROBES})


def _interpolated(
    curve: NDArray[np.float64], ks: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Output change at k = 0..n: log-log interpolation against the error curve, made non-increasing in k."""
    floor = 1e-12
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
    """Least price of a step of one group, and where it leads; steps of 1 to 16 % of its units are tried."""
    if now <= 1:
        return math.inf, now
    fewer = [max(1, now - max(1, round(fraction * now))) for fraction in (0.0, 0.04, 0.16)]
    saved = size.savings(dimensions, group, now, fewer).tolist()
    prices = [(float(cost[k] - cost[now]) / save, k) for k, save in zip(fewer, saved, strict=True) if save > 0]
    return min(prices, default=(math.inf, now))


def _frozen(sizes: Mapping[str, Sequence[int]]) -> Sizes:
    return tuple((group, tuple(ks)) for group, ks in sizes.items())


def _first_fit(budget: Budget, target: int, rule: Callable[[float], Keep], levels: Sequence[float]) -> Keep:
    """The first of `levels`, ordered from the largest to the smallest network, that fits (binary search)."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        fits = budget.size.of(rule(levels[middle])) <= target
        low, high = (low, middle) if fits else (middle + 1, high)
    return rule(levels[low])


Rule = Callable[[Budget, int], Keep]
"""From what may be measured and the largest size to units to keep by group."""

BUDGETS: dict[str, Rule] = {
    "output": output,
    "accuracy": accuracy,
    "error": error,
    "uniform": uniform,
}

DEFAULT_BUDGET = "output"


def _most(total: int, ratio: float) -> int:
    """The largest size with total / size >= ratio, as floating point divides."""
    size = math.floor(total / ratio)
    return size + 1 if total / (size + 1) >= ratio else size


def least(budget: Budget) -> int:
    """Size with one unit a group."""
    return budget.size.of(dict.fromkeys(budget.size.units, 1))


def unreachable(what: str, ratio: float, largest: float) -> SubpruneError:
    """The error where a network cannot be made so small.

    Args:
        what: The ratio's name.
        ratio: As asked for.
        largest: What can be had.
    """
    largest = math.floor(largest * 100) / 100
    said = f"{what} {ratio:g} cannot be reached: "
    if largest > 1:
        return SubpruneError(
            f"{said}with as few channels as possible it is {largest:g}", remedy=f"ask for at most {largest:g}"
        )
    remedy = "lower --align, or leave less out by --only, --skip and --layers; --explain says what can be pruned"
    return SubpruneError(f"{said}next to nothing can be pruned", remedy=remedy)


def allot(rule: Rule, budget: Budget, ratio: float) -> Keep:
    """Units to keep by group under a rule, such that the network has at most 1 / ratio of its size.

    What a rule leaves too large (eq. (6) never goes below the smallest of its fractions) is scaled down evenly.

    Raises:
        SubpruneError: If even one unit a group is too many.
    """
    target = _most(budget.size.total, ratio)
    if least(budget) > target:
        raise unreachable("ratio", ratio, budget.size.total / least(budget))
    keep = rule(budget, target)
    return keep if budget.size.of(keep) <= target else _scaled(budget, target, keep)
