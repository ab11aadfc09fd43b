"""How many units each group keeps so that the network meets the ratio: the rules, listed in `BUDGETS`."""

from __future__ import annotations

import math

import numpy as np

from subprune_fx.errors import SubpruneError
from subprune_fx.passes.budget import Budget, Rule, first, first_fit, scaled
from subprune_fx.passes.budget_accuracy import accuracy
from subprune_fx.passes.budget_output import output
from subprune_fx.selectors import Keep


def uniform(budget: Budget, target: int) -> Keep:
    """Equal fractions: the largest alpha with k = max(1, floor(alpha n)) that fits."""
    return scaled(budget, target, budget.size.units)


def error(budget: Budget, target: int) -> Keep:
    """Every group down to the same relative error (paper section 5.2), the smallest that fits."""
    limits = np.unique(np.concatenate([curve[1:] for curve in budget.error.values()])).tolist()

    def at(limit: float) -> Keep:
        return {group: max(1, first(curve <= limit + 1e-15)) for group, curve in budget.error.items()}

    return first_fit(budget, target, at, limits)[1]


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
    return keep if budget.size.of(keep) <= target else scaled(budget, target, keep)
