"""The paper's own method: least change of the next layer's input, by greedy selection (sections 3 to 5)."""

from __future__ import annotations

from subprune_fx.numerics.greedy import greedy
from subprune_fx.selectors.base import Evidence, Need, Ranking, Selector


def rank(evidence: Evidence, stop: int | None) -> Ranking:
    """Greedy on F of eq. (2), summed over the consumers; stochastic greedy (App. B.3) where epsilon is given.

    Which inputs the moments come from makes it LayerInChange, SeqInChange or AsymInChange (section 5.1).
    """
    found = greedy(evidence.blocks, evidence.units, stop=stop, epsilon=evidence.epsilon, generator=evidence.generator)
    return Ranking(found.order, error=found.error)


ROW = Selector("inchange", "least change of the next layer's input", frozenset({Need.MOMENTS}), rank, live=True)
