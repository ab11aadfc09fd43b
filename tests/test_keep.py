"""`prune(keep=...)`: the same fraction of every group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import subprune_fx
from subprune_fx.errors import SubpruneError


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)).eval()


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.99])
def test_every_group_keeps_the_fraction(keep: float) -> None:
    pruned = subprune_fx.prune(network(), torch.randn(40, 6), keep=keep)
    assert [row.kept for row in pruned.report.groups] == [int(12 * keep), int(9 * keep)]
    assert pruned.report.ratio == pytest.approx(pruned.report.achieved)


@pytest.mark.parametrize("goal", [{}, {"ratio": 2.0, "keep": 0.5}, {"keep": 1.0}, {"keep": float("nan")}])
def test_unusable_goals_are_refused(goal: dict[str, Any]) -> None:
    with pytest.raises(SubpruneError):
        subprune_fx.prune(network(), torch.randn(40, 6), **goal)
