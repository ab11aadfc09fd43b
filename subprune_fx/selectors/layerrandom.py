"""LayerRandom: any units go, in each layer."""

from __future__ import annotations

import torch

from subprune_fx.selectors.base import Evidence, Ranking, Selector, by_score


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """Scores uniform in [0, 1)."""
    return by_score(torch.rand(evidence.units, generator=evidence.generator, dtype=torch.float64))


ROW = Selector("layerrandom", "random units, layer by layer", frozenset(), rank)
