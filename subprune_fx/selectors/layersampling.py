"""LayerSampling (Liebenwein et al. 2020): units drawn with probabilities proportional to their sensitivity.

Sampling with replacement until k different units have been drawn is a Poisson process per unit, stopped when the k-th
unit has arrived: one set of arrival times gives every k, nested. (The paper's code draws a fixed number of samples and
then adds the likeliest or removes the unlikeliest units until there are k.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from subprune_fx.selectors.base import Evidence, Keep, Need, Ranking, Selector

DELTA = 1e-16
"""Probability of failure. The paper's code takes 1e-12 for MNIST and this for CIFAR-10."""

CONSTANT = 3.0
"""K and C of Liebenwein et al.'s sample complexity, as in their code."""


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """In the order of the first draw."""
    assert evidence.sensitivity is not None
    largest = evidence.sensitivity.largest
    total = float(largest.sum())
    chance = largest / total if total > 0 else torch.full_like(largest, 1 / evidence.units)
    waits = -torch.log1p(-torch.rand(evidence.units, generator=evidence.generator, dtype=torch.float64))
    arrival = waits / chance
    order = torch.argsort(arrival, stable=True)
    seed = int(torch.randint(1 << 62, (1,), generator=evidence.generator))
    numerator = 8.0 * (evidence.sensitivity.patches + 1) * evidence.sensitivity.taps
    coefficient = 2 * CONSTANT * math.log(numerator / DELTA) * total
    return Ranking(
        order,
        chance,
        factors=partial(_factors, chance[order], arrival[order], seed),  # other processes are sent it: no lambda
        demand=partial(_demand, chance, coefficient),
    )


def _factors(chance: Tensor, arrival: Tensor, seed: int, kept: int) -> Tensor:
    """How often a unit was drawn over how often it was to be expected, when the last kept unit arrives."""
    first, end = arrival[:kept], arrival[kept - 1]
    if not bool(torch.isfinite(end)):  # units that are never drawn contribute nothing
        return torch.ones(kept, dtype=torch.float64)
    later = torch.poisson(chance[:kept] * (end - first), generator=torch.Generator().manual_seed(seed))
    counts = 1 + later
    return counts / (counts.sum() * chance[:kept])


def _demand(chance: Tensor, coefficient: float, epsilon: float) -> int:
    """Different units to expect among the samples that a relative error of epsilon takes (their Theorem 2)."""
    samples = max(1.0, float(math.ceil(min(CONSTANT * (6 + 2 * epsilon) * coefficient / epsilon**2, 1e300))))
    expected = -torch.expm1(samples * torch.log1p(-chance)).sum()
    return max(1, min(len(chance), math.ceil(float(expected) - 1e-9)))


def allot(rankings: Mapping[str, Ranking], size: Callable[[Mapping[str, int]], int], target: int) -> Keep:
    """The smallest epsilon, the same in all layers, whose demands fit; bisection on its logarithm."""

    def at(exponent: float) -> Keep:
        return {name: _asked(ranking)(math.exp(exponent)) for name, ranking in rankings.items()}

    low, high = -300.0, 300.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if size(at(middle)) <= target else (middle, high)
    return at(high)


def _asked(ranking: Ranking) -> Callable[[float], int]:
    assert ranking.demand is not None
    return ranking.demand


ROW = Selector("layersampling", "drawn by largest share of an output", frozenset({Need.ACTIVATIONS}), rank, allot=allot)
