"""LayerActGrad (Molchanov et al. 2017): the units whose removal changes the loss least, to first order, go."""

from __future__ import annotations

from torch import Tensor

from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector, by_score


def importance(evidence: Evidence) -> Tensor:
    """Mean over samples of |sum over positions of activation x gradient|, (units,).

    InputSpec where the next layers read (after activation function, BatchNorm and pooling), as in the paper's code.
    """
    assert evidence.taylor is not None
    return evidence.taylor.abs().mean(0)


def rank(evidence: Evidence, _stop: int | None) -> Ranking:
    """Most important first."""
    return by_score(importance(evidence))


ROW = Selector("layeractgrad", "largest activation x gradient, layer by layer", frozenset({Need.GRADIENTS}), rank)
