"""LayerGreedyFS (Ye et al. 2020a): start from nothing, add the unit that lowers the network's loss most.

As the paper runs it (App. G): a unit is added once at most, every step evaluates one batch drawn from the calibration
inputs, and the outgoing weights of the k units kept are multiplied by n / k. When weights are refitted the final ones
are not multiplied, but selection still is by the scaled ones.
"""

from __future__ import annotations

import math

import torch

from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector


def rank(evidence: Evidence, stop: int | None) -> Ranking:
    """One unit a step. With epsilon, unlike the paper's runs, only n / k log(1 / epsilon) random units are tried."""
    assert evidence.losses is not None
    units, generator = evidence.units, evidence.generator
    count = units if stop is None else stop
    tries = units
    if evidence.epsilon is not None:
        tries = max(1, math.ceil(units / count * math.log(1 / evidence.epsilon)))
    kept = torch.zeros(units, dtype=torch.bool)
    order: list[int] = []
    for step in range(1, count + 1):
        loss = evidence.losses.draw(generator)
        left = (~kept).nonzero()[:, 0]
        best, lowest = -1, math.inf
        for unit in left[torch.randperm(len(left), generator=generator)[:tries]].tolist():
            kept[unit] = True
            found = loss(kept, units / step)
            kept[unit] = False
            if best < 0 or found < lowest:
                best, lowest = unit, found
        kept[best] = True
        order.append(best)
    return Ranking(
        torch.tensor(order, dtype=torch.int64),
        factors=lambda k: torch.full((k,), units / k, dtype=torch.float64),
    )


ROW = Selector("layergreedyfs", "lowest loss, adding one unit after the other", frozenset({Need.LOSS}), rank, live=True)
