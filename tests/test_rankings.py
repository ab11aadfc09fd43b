"""Groups are ranked once, and no further than somebody asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subprune_fx import prune, prune_each
from subprune_fx.graph.channels import Group
from subprune_fx.passes import pipeline
from subprune_fx.passes.calibrate import calibrate
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.rankings import Rankings
from subprune_fx.plan import Layer
from subprune_fx.samples import inputs_of
from subprune_fx.selectors import Ranking
from subprune_fx.team import ALONE


def group(name: str, units: int) -> Group:
    """A group of which nothing but its name and its size is read."""
    return Group(name, np.arange(units), (), (), ())


def test_ranks_what_is_asked_for() -> None:
    asked: list[tuple[str, int | None]] = []

    def rank(group: Group, count: int | None) -> Ranking:
        asked.append((group.name, count))
        return Ranking(torch.arange(len(group.units) if count is None else count))

    found = Rankings([group("a", 6), group("b", 6)], rank, ALONE, lambda done, total: None)
    assert len(found.first({"a": 3})["a"].order) == 3
    found.first({"a": 2, "b": 6})  # a's first three do; all of b are kept: in which order is not asked
    assert asked == [("a", 3), ("b", 6)]
    found.first({"a": 4, "b": 5})
    assert asked[2:] == [("a", 4), ("b", 5)]
    assert len(found["a"].order) == 6
    found.first({"a": 6, "b": 4})
    assert asked[4:] == [("a", None)]


class Residual(nn.Module):
    """A stream that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.inner, self.last = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        out: Tensor = self.last(self.inner(y + self.branch(y).relu()).relu()).mean((2, 3))
        return out


@pytest.mark.parametrize("variant", ["asym", "layer"])
def test_fractions_one_by_one_or_together(variant: str) -> None:
    """A ranking that is continued for the larger network leaves the same units."""
    torch.manual_seed(0)
    network, inputs = Residual().eval(), torch.randn(24, 3, 8, 8)
    together = list(prune_each(network, inputs, keeps=(0.25, 0.75, 0.5), variant=variant))
    for keep, found in zip((0.25, 0.75, 0.5), together, strict=True):
        alone = prune(network, inputs, keep=keep, variant=variant)
        assert [d.kept for d in found.plan.decisions] == [d.kept for d in alone.plan.decisions]


def test_curves_are_of_what_has_been_ranked() -> None:
    torch.manual_seed(0)
    found = prune(Residual().eval(), torch.randn(24, 3, 8, 8), layers=[Layer("inner", ratio=2)])
    curves = {row.name: row.curve for row in found.report.groups}
    assert all(np.isfinite([error for _, error in curve]).all() for curve in curves.values())
    assert [k for k, _ in curves["stem"]] == [12]


def test_moments_of_what_is_ranked_before_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a budget only the stream's readers are measured beforehand; a budget that comes later has them all."""
    torch.manual_seed(0)
    network, inputs = Residual().eval(), inputs_of(torch.randn(24, 3, 8, 8), "x")
    measured: list[set[str]] = []

    def watched(*arguments: Any) -> Any:
        found = calibrate(*arguments)
        measured.append(set(found[0]))
        return found

    monkeypatch.setattr(pipeline, "calibrate", watched)
    some, every = (Compiler(network, inputs, Options(), budgeted=budgeted) for budgeted in (False, True))
    assert measured == [{"branch", "inner"}, {"branch", "inner", "last"}]
    for one, other in ((some.compile_fraction(0.5), every.compile_fraction(0.5)), (some.compile(2), every.compile(2))):
        assert one.plan.decisions == other.plan.decisions
        assert all(torch.equal(value, other.plan.values[name]) for name, value in one.plan.values.items())
