"""Stochastic greedy (paper section 3.3, App. B.3): the paper's method on a sample of candidates a step."""

from __future__ import annotations

import dataclasses

from subprune_fx.selectors import inchange
from subprune_fx.selectors.base import Evidence, Ranking

EPSILON = 0.1
"""Of the guarantee 1 - e^-gamma - epsilon, unless the user says."""


def rank(evidence: Evidence, stop: int | None) -> Ranking:
    """Greedy that looks at n / k log(1 / epsilon) random candidates a step."""
    return inchange.rank(dataclasses.replace(evidence, epsilon=evidence.epsilon or EPSILON), stop)


ROW = dataclasses.replace(inchange.ROW, name="stochastic", summary="the same on sampled candidates", rank=rank)
