"""ActGrad (Molchanov et al. 2017): the same importance, normalised in each layer and ranked over the network."""

from __future__ import annotations

import torch

from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector, by_score
from subprune_fx.selectors.globally import highest
from subprune_fx.selectors.layeractgrad import importance


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """Importance over its layer's l2 norm."""
    score = importance(evidence)
    return by_score(score / score.norm().clamp(min=torch.finfo(torch.float64).tiny))


ROW = Selector(
    "actgrad", "largest activation x gradient, whole network", frozenset({Need.GRADIENTS}), rank, allot=highest
)
