"""LayerWeightNorm (Li et al. 2017, He et al. 2014): the smallest outgoing weights go, in each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector, by_score


def outgoing(evidence: Evidence) -> Tensor:
    """l1 norm of each unit's outgoing weights, over all consumers, (units,).

    The paper says output weights, and its code takes the next layer's (He et al.'s "onorm"), after a flatten those
    of all positions of the channel.
    """
    norms = torch.zeros(evidence.units, dtype=torch.float64)
    for readout in evidence.readouts:
        norms.index_add_(0, readout.unit, readout.weight.abs().sum(1))
    return norms


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """Largest norm first."""
    return by_score(outgoing(evidence))


ROW = Selector("layerweightnorm", "largest outgoing weights, layer by layer", frozenset({Need.WEIGHTS}), rank)
