"""WeightNorm (He et al. 2014): the smallest outgoing weights go, ranked over the whole network."""

from __future__ import annotations

import torch

from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector, by_score
from subprune_fx.selectors.globally import highest
from subprune_fx.selectors.layerweightnorm import outgoing


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """l1 norm of the outgoing weights divided by their number, so that layers of different widths compare."""
    counts = torch.zeros(evidence.units, dtype=torch.float64)
    for readout in evidence.readouts:
        width = torch.full((len(readout.unit),), float(readout.weight.shape[1]), dtype=torch.float64)
        counts.index_add_(0, readout.unit, width)
    return by_score(outgoing(evidence) / counts.clamp(min=1))


ROW = Selector("weightnorm", "largest outgoing weights, whole network", frozenset({Need.WEIGHTS}), rank, allot=highest)
