"""The paper's own method: least change of the next layer's input, by greedy selection (sections 3 to 5)."""

from __future__ import annotations

import torch

from subprune_fx.numerics.greedy import greedy, whole
from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector


def rank(evidence: Evidence, stop: int | None) -> Ranking:
    """Greedy on F of eq. (2), summed over the consumers; stochastic greedy (App. B.3) where epsilon is given.

    Which inputs the moments come from makes it LayerInChange, SeqInChange or AsymInChange (section 5.1).
    """
    if stop == evidence.units:
        error = torch.full((stop + 1,), torch.nan, dtype=torch.float64)
        error[-1] = whole(evidence.blocks)
        return Ranking(torch.arange(stop), error=error)
    found = greedy(evidence.blocks, evidence.units, stop=stop, epsilon=evidence.epsilon, generator=evidence.generator)
    return Ranking(found.order, error=found.error)


ROW = Selector("inchange", "least change of the next layer's input", frozenset({Need.MOMENTS}), rank, live=True)
