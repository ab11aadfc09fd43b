"""The budget of global methods: units of all layers ranked in one list, the best kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from subprune_fx.selectors.base import Keep, Ranking


def highest(rankings: Mapping[str, Ranking], size: Callable[[Mapping[str, int]], int], target: int) -> Keep:
    """Keep the units with the highest scores of the whole network, as many as fit.

    A group keeps at least one unit: a network without one of its layers computes nothing (the paper's code may drop
    whole layers).

    Args:
        rankings: With scores that compare between groups.
        size: Of the network when each group keeps so many units.
        target: Largest size.
    """
    names = list(rankings)
    scores = torch.cat([rankings[name].score[rankings[name].order] for name in names])
    group = torch.cat([torch.full_like(rankings[name].order, number) for number, name in enumerate(names)])
    ranked = group[torch.argsort(scores, descending=True, stable=True)]

    def first(count: int) -> Keep:
        found = torch.bincount(ranked[:count], minlength=len(names)).tolist()
        return {name: max(1, kept) for name, kept in zip(names, found, strict=True)}

    low, high = 0, len(ranked)  # first(low) fits or nothing does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(first(middle)) <= target else (low, middle - 1)
    return first(low)
