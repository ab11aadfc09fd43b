"""Greedy selection of units (paper Algorithm 1, Prop. 3.2 and B.7) on normal equations.

For consumers with normal equations G = B'B, C = B'Y, keeping the columns S explains

    F(S) = tr(C_S' G_SS^-1 C_S)                                            (paper eq. 2)

and every step adds the unit that explains most of what is left; `numerics.elimination` says how much that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from subprune_fx.numerics.elimination import Part


@dataclasses.dataclass(frozen=True)
class Selection:
    """One greedy run.

    Attributes:
        order: Units in the order they were chosen, (k,), int64.
        error: sum_c scale_c (energy_c - F_c(S)) with the first 0..k of them kept, (k + 1,), float64, non-increasing.
        gains: Sum of the gains F(i | S) of all units not in S, with the first 0..k - 1 kept, (k,), float64.
    """

    order: Tensor
    error: Tensor
    gains: Tensor


def greedy(
    blocks: Sequence[Part],
    units: int,
    *,
    stop: int | None = None,
    epsilon: float | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """Choose units one by one, each time the one that lowers the summed error most (paper Algorithm 1).

    Args:
        blocks: What the consumers read.
        units: How many units there are.
        stop: How many to choose; None for all.
        epsilon: Consider only a random sample of units/stop * log(1/epsilon) candidates at each step (stochastic
            greedy, paper App. B.3); None considers all.
        generator: Source of those samples.

    Returns:
        The nested order and its error curve.
    """
    count = units if stop is None else min(stop, units)
    factors = [members[0].together(members) for members in _stacked(blocks)]
    size = units if epsilon is None else max(1, int(np.ceil(units / max(count, 1) * np.log(1 / epsilon))))
    open_ = torch.ones(units, dtype=torch.bool)
    error = [sum(block.scale * block.energy for block in blocks)]
    order: list[int] = []
    sums: list[float] = []
    for _ in range(count):
        gains = torch.zeros(units, dtype=torch.float64)
        for part in factors:
            part.add_gains(gains)
        sums.append(float((gains * open_).sum()))
        best = (
            int(gains.where(open_, -torch.inf).argmax()) if size >= units else _sampled(gains, open_, size, generator)
        )
        for part in factors:
            part.eliminate(best)
        open_[best] = False
        order.append(best)
        error.append(min(error[-1], max(error[-1] - float(gains[best]), 0.0)))
    curves = (torch.tensor(values, dtype=torch.float64) for values in (error, sums))
    return Selection(torch.tensor(order, dtype=torch.int64), *curves)


def _sampled(gains: Tensor, open_: Tensor, size: int, generator: torch.Generator | None) -> int:
    """The best of some candidates."""
    candidates = open_.nonzero()[:, 0]
    sample = candidates[torch.randperm(len(candidates), generator=generator)[:size]]
    return int(sample[gains[sample].argmax()])


def whole(blocks: Sequence[Part]) -> float:
    """The summed error with all units kept, for which no order is needed."""
    return sum(part.scale * max(part.energy - part.explained_by(torch.arange(len(part.unit))), 0.0) for part in blocks)


def _stacked(blocks: Sequence[Part]) -> list[list[Part]]:
    """Parts that can be eliminated together."""
    alike: dict[object, list[Part]] = {}
    for block in blocks:
        alike.setdefault(block.alike, []).append(block)
    return list(alike.values())
