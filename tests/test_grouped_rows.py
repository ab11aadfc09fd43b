"""Rows of grouped contractions give what their second moments give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.api import Pruned
from subprune_fx.numerics import diagonals
from subprune_fx.numerics.collect import Collected, Collector
from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.diagonals import TOLERANCE
from subprune_fx.numerics.greedy import greedy
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.prefixes import kept_errors, reweighted_errors
from subprune_fx.numerics.row_moments import RowMoments
from subprune_fx.numerics.row_normal import RowNormal
from subprune_fx.numerics.targets import Targets
from subprune_fx.passes.problems import Problem, Settings, pose

F64 = torch.float64
SHAPES = pytest.mark.parametrize(
    ("groups", "width", "taps"), [(3, 6, 3), (6, 2, 3), (6, 1, 3), (4, 12, 1)], ids=["wide", "two", "depthwise", "1x1"]
)
CENTRED = pytest.mark.parametrize("intercept", [True, False])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def form(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all consumers known by so much of their rows, or by second moments (None)."""
    monkeypatch.setattr("subprune_fx.numerics.collect.share", lambda *_: share)


def both(groups: int, width: int, taps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Moments, RowMoments]:
    """Two batches, with 12 rows in all and three targets a group."""
    reader = ConvReader((taps, taps), (1, 1), ((taps // 2,) * 2,) * 2, (1, 1), groups)
    x, y = draw(3, groups * width, 2, 2) + 0.7, draw(3, groups * 3, 2, 2, seed=1) - 0.3
    found: list[Collected] = []
    for share in (None, 1.0):
        form(share, monkeypatch)
        collector = Collector(reader, 3)
        collector.add(x[:1])
        collector.add(x[1:])
        targets = Targets(collector.moments().untargeted(3), reader)
        targets.add(x[:2], y[:2])
        targets.add(x[2:], y[2:])
        found.append(targets.moments())
    dense, by_row = found
    assert isinstance(dense, Moments)
    assert isinstance(by_row, RowMoments)
    return dense, by_row


def units(groups: int, width: int, taps: int) -> Any:
    """The same slot of every group is one unit."""
    return np.tile(np.repeat(np.arange(width), taps * taps), (groups, 1))


def posed(
    shape: tuple[int, int, int], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[Problem, Moments], tuple[Problem, RowMoments]]:
    groups, width, taps = shape
    weight = draw(groups, width * taps * taps, 3, seed=2)
    dense, rows = both(*shape, monkeypatch)
    one, two = (pose(moments, weight, units(*shape), settings) for moments in (dense, rows))
    assert isinstance(two.equations, RowNormal)
    return (one, dense), (two, rows)


@SHAPES
@CENTRED
@pytest.mark.parametrize("ridge", [1e-2, 1e-5])
def test_weights_and_intercepts_are_the_same(
    groups: int, width: int, taps: int, intercept: bool, ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all columns, with some units, and with as many columns of every group but not the same ones."""
    settings = Settings(intercept=intercept, ridge=ridge)
    (one, dense), (two, rows) = posed((groups, width, taps), settings, monkeypatch)
    torch.testing.assert_close(two.ridge, one.ridge, rtol=1e-12, atol=0)
    torch.testing.assert_close(two.energy, one.energy, rtol=1e-12, atol=0)
    alive = np.arange(width) % 2 == 0
    columns = np.arange(width * taps * taps)
    own = torch.from_numpy(np.stack([np.sort(np.roll(columns, g)[: len(columns) // 2 + 1]) for g in range(groups)]))
    rounding = 1e-12 / ridge  # of solutions: the condition of the Gram matrix times float64's
    for found, expected in (
        (two.solution(), one.solution()),
        (two.reweighted(alive), one.reweighted(alive)),
        (two.only(alive).solution(), one.only(alive).solution()),
        (two.equations.only(own).solution(), one.equations.only(own).solution()),
    ):
        torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    weight = one.equations.only(own).solution()
    torch.testing.assert_close(rows.only(own).intercept(weight), dense.only(own).intercept(weight))
    assert rows.intercept(one.solution()).shape == (groups, 3)


@SHAPES
@CENTRED
def test_new_targets_are_the_same(
    groups: int, width: int, taps: int, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the contraction's own outputs, and of those that a problem is aimed at later."""
    settings = Settings(intercept=intercept)
    (one, dense), (two, rows) = posed((groups, width, taps), settings, monkeypatch)
    weight = draw(groups, width * taps * taps, 3, seed=3)
    first, second = dense.towards(weight), rows.towards(weight)
    left, right = one.aimed(first, settings), two.aimed(second, settings)
    torch.testing.assert_close(right.energy, left.energy, rtol=1e-10, atol=0)
    torch.testing.assert_close(right.solution(), left.solution(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(second.intercept(weight), first.intercept(weight))
    own = pose(second, weight, units(groups, width, taps), settings)
    torch.testing.assert_close(own.solution(), weight, rtol=1e-8, atol=1e-8)


@SHAPES
@CENTRED
def test_picks_and_errors_are_the_same(
    groups: int, width: int, taps: int, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ridge = 1e-2
    found = posed((groups, width, taps), Settings(intercept=intercept, ridge=ridge), monkeypatch)
    parts = [
        [problem.equations.system(g).part(torch.from_numpy(unit), 0.5) for g, unit in enumerate(problem.unit)]
        for problem, _ in found
    ]
    dense, rows = (greedy(own, width) for own in parts)
    assert rows.order.tolist() == dense.order.tolist()
    rounding = width * taps**2 * TOLERANCE / ridge  # by what each pivot is made larger, against what it is at least
    torch.testing.assert_close(rows.error, dense.error, rtol=rounding, atol=rounding)
    torch.testing.assert_close(rows.gains, dense.gains, rtol=rounding, atol=rounding)
    order, weights = dense.order.flip(0), [draw(width * taps * taps, 3, seed=7 + g) for g in range(groups)]
    one, two = (reweighted_errors(own, order) for own in parts)
    torch.testing.assert_close(two, one, rtol=rounding, atol=rounding)
    one, two = (kept_errors(own, weights, order) for own in parts)
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def test_chosen_units_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in what is explained: nothing is subtracted from them any more, which would leave no factor."""
    problem = posed((3, 6, 3), Settings(), monkeypatch)[1][0]
    parts = [problem.equations.system(g).part(torch.from_numpy(unit), 1.0) for g, unit in enumerate(problem.unit)]

    def slow(*_: Tensor) -> Tensor:
        pytest.fail("a factorisation of its diagonal block fails")

    monkeypatch.setattr(diagonals, "_column_by_column", slow)
    assert sorted(greedy(parts, 6).order.tolist()) == list(range(6))


class Grouped(nn.Module):
    """Grouped 3 x 3 convolutions with several channels a group, and with two."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        channels = groups * width
        self.inner = nn.Conv2d(3, channels, 1)
        self.mixed = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.outer = nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.norm(self.mixed(self.inner(x).relu())).relu()).mean((2, 3))
        return found


@pytest.mark.parametrize("variant", ["asym", "seq", "layer"])
@pytest.mark.parametrize(("groups", "width"), [(3, 8), (6, 2)])
@pytest.mark.parametrize(("keep", "ratio"), [(0.5, None), (None, 2.0)])
def test_networks_come_out_the_same(
    variant: str, groups: int, width: int, keep: float | None, ratio: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = Grouped(groups, width).double().eval(), torch.randn(8, 3, 4, 4, dtype=F64)
    seen: list[int] = []

    def noted(*args: Any, **named: Any) -> Problem:
        found = pose(*args, **named)
        if isinstance(found.equations, RowNormal):
            seen.append(len(found.unit))
        return found

    for module in ("sweep", "trials"):
        monkeypatch.setattr(f"subprune_fx.passes.{module}.pose", noted)
    found: list[Pruned] = []
    for share in (None, 1.0):
        form(share, monkeypatch)
        found.append(subprune_fx.prune(model, x, keep=keep, ratio=ratio, variant=variant))
        assert (groups in seen) == (share is not None)
    one, two = found
    assert two.plan.decisions
    for left, right in zip(one.plan.decisions, two.plan.decisions, strict=True):
        assert (left.group, left.kept) == (right.group, right.kept)
    expected, weights = one.module.state_dict(), two.module.state_dict()
    assert weights.keys() == expected.keys()
    for name, value in weights.items():  # of what is nearly singular, the ridge leaves this much to rounding
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
