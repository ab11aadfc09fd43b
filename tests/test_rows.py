"""Fewer rows than columns: the rows give what second moments give, in less room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import Joined
from torch import Tensor

from subprune_fx.graph.channels import Group
from subprune_fx.numerics import row_elimination, row_moments
from subprune_fx.numerics.collect import Collected, Collector
from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.diagonals import TOLERANCE
from subprune_fx.numerics.greedy import greedy
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.prefixes import kept_errors, reweighted_errors
from subprune_fx.numerics.readers import LinearReader, Reader
from subprune_fx.numerics.row_elimination import RowBlock
from subprune_fx.numerics.row_kernels import Kernels
from subprune_fx.numerics.row_moments import RowMoments
from subprune_fx.numerics.targets import Targets
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.problems import Problem, Settings, blocks, pose
from subprune_fx.team import Team

F64 = torch.float64
CONV = ConvReader((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
RIDGES = pytest.mark.parametrize("ridge", [1e-3, 1e-6])
CENTRED = pytest.mark.parametrize("intercept", [True, False])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def both(reader: Reader, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Moments, RowMoments]:
    """The same two batches in both forms."""
    found: list[Collected] = []
    for few in (10**9, 0):
        monkeypatch.setattr(row_moments, "FEW", few)
        monkeypatch.setattr(row_moments, "FEW_OF_ONE", few)
        monkeypatch.setattr(row_moments, "MANY", 0)
        monkeypatch.setattr(row_moments, "WIDE", 0)
        collector = Collector(reader, 2)
        collector.add(x[: len(x) // 2])
        collector.add(x[len(x) // 2 :])
        moments = collector.moments().untargeted(y.shape[1])
        targets = Targets(moments, reader)
        for part in (slice(0, 3), slice(3, None)):
            targets.add(x[part], y[part])
        found.append(targets.moments())
    dense, rows = found
    assert isinstance(dense, Moments)
    assert isinstance(rows, RowMoments)
    return dense, rows


def posed(monkeypatch: pytest.MonkeyPatch, settings: Settings, units: int = 6) -> tuple[Problem, Problem]:
    """A 3 x 3 convolution of six channels, some of them in one unit, on 16 positions in all."""
    x, y, weight = draw(4, 6, 2, 2) + 0.7, draw(4, 5, 2, 2, seed=1) - 0.3, draw(1, 54, 5, seed=2)
    unit = np.repeat(np.arange(6) % units, 9)[None]
    found = [pose(moments, weight, unit, settings) for moments in both(CONV, x, y, monkeypatch)]
    return found[0], found[1]


@CENTRED
@RIDGES
@pytest.mark.parametrize("alive", [[True] * 6, [True, False, True, True, False, False], [True] + [False] * 5])
def test_weights_are_the_same(
    intercept: bool, ridge: float, alive: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, rows = posed(monkeypatch, Settings(intercept=intercept, ridge=ridge))
    torch.testing.assert_close(rows.ridge, dense.ridge, rtol=1e-12, atol=0)
    torch.testing.assert_close(rows.energy, dense.energy, rtol=1e-12, atol=0)
    mask = np.array(alive)
    torch.testing.assert_close(rows.reweighted(mask), dense.reweighted(mask), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(rows.only(mask).solution(), dense.only(mask).solution(), rtol=1e-8, atol=1e-9)


@CENTRED
def test_intercepts_and_own_targets_are_the_same(intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weight = draw(4, 6, 2, 2) + 0.7, draw(4, 5, 2, 2, seed=1), draw(1, 54, 5, seed=2)
    dense, rows = both(CONV, x, y, monkeypatch)
    torch.testing.assert_close(rows.intercept(weight), dense.intercept(weight), rtol=1e-10, atol=1e-10)
    unit, settings = np.arange(54)[None] // 9, Settings(intercept=intercept)
    one, two = (pose(moments.towards(weight), weight, unit, settings) for moments in (dense, rows))
    torch.testing.assert_close(two.energy, one.energy, rtol=1e-10, atol=0)
    torch.testing.assert_close(two.solution(), weight, rtol=1e-8, atol=1e-8)
    kept = torch.arange(0, 54, 2)[None]
    torch.testing.assert_close(
        rows.only(kept).intercept(weight[:, kept[0]]), dense.only(kept).intercept(weight[:, kept[0]])
    )


@CENTRED
@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
@pytest.mark.parametrize("units", [6, 4])
def test_picks_and_errors_are_the_same(
    intercept: bool, ridge: float, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With units of as many columns each, and with ragged ones."""
    found = posed(monkeypatch, Settings(intercept=intercept, ridge=ridge), units)
    parts = [
        problem.equations.system(0).part(torch.from_numpy(problem.unit[0]), 0.5 / float(problem.energy.sum()))
        for problem in found
    ]
    assert isinstance(parts[1], RowBlock)
    dense, rows = (greedy([part], units) for part in parts)
    assert rows.order.tolist() == dense.order.tolist()
    rounding = TOLERANCE / ridge  # what a pivot is made larger by, against what it is at least
    for name in ("error", "gains"):
        torch.testing.assert_close(getattr(rows, name), getattr(dense, name), rtol=rounding, atol=rounding)
    order, weight = dense.order.flip(0), draw(54, 5, seed=7)
    torch.testing.assert_close(
        reweighted_errors([parts[1]], order), reweighted_errors([parts[0]], order), rtol=rounding, atol=rounding
    )
    torch.testing.assert_close(
        kept_errors([parts[1]], [weight], order), kept_errors([parts[0]], [weight], order), rtol=1e-9, atol=1e-9
    )
    columns = torch.arange(4, 30)
    assert parts[1].explained_by(columns) == pytest.approx(parts[0].explained_by(columns), rel=rounding)


@pytest.mark.parametrize("taps", [1, 2])
@pytest.mark.parametrize("ridge", [1e-1, 1e-3])
def test_picks_are_the_same_without_the_outputs(taps: int, ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one panel of pivots that read the weights, and with columns dropped now and then."""
    inputs, weight, unit = draw(24 * taps, 4), draw(24 * taps, 40, seed=1), torch.arange(24 * taps) // taps
    part = RowBlock(inputs, draw(4, 40, seed=2), weight, ridge, unit, 0.5)
    monkeypatch.setattr(row_elimination, "PANEL", 3 * taps)
    made, found = list[Kernels](), []
    for pays in (True, False):
        monkeypatch.setattr(Kernels, "pay", lambda *_, pays=pays: pays)
        monkeypatch.setattr(Kernels, "__init__", _noted(made))
        found.append(greedy([part], 24))
    assert len(made) == 1
    assert found[0].order.tolist() == found[1].order.tolist()
    torch.testing.assert_close(found[0].error, found[1].error, rtol=1e-9, atol=1e-9)


def _noted(made: list[Kernels], init: Callable[..., None] = Kernels.__init__) -> Callable[..., None]:
    def noted(self: Kernels, *args: Any) -> None:
        made.append(self)
        init(self, *args)

    return noted


def test_parts_of_both_forms_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, rows = posed(monkeypatch, Settings())
    one, two = (problem.equations.system(0).part(torch.from_numpy(problem.unit[0]), 1.0) for problem in (dense, rows))
    torch.testing.assert_close(greedy([one, two], 6).error, 2 * greedy([one], 6).error, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("others", ["settled", "open", "gone"])
@pytest.mark.parametrize("ridge", [1e-3, 0.0])
def test_one_group_of_several(others: str, ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that keep their weights, that are refitted in any case, and that are not there."""
    channels = analyse(Joined().double(), torch.randn(2, 3, dtype=F64)).channels
    group, other = channels.groups
    assert isinstance(other, Group)
    (consumer,) = (c for name, c in channels.contractions.items() if name in group.consumers)
    x, y, weight = draw(5, 12), draw(5, 3, seed=1), draw(1, 12, 3, seed=2)
    alive, settled = np.ones(channels.prunable.size, dtype=bool), ~channels.prunable
    if others == "settled":
        settled[other.units] = True
    elif others == "gone":
        alive[other.units[1:]], settled[other.units] = False, True
    settings = Settings(intercept=False, ridge=ridge)
    curves = []
    for moments in both(LinearReader(), x, y, monkeypatch):
        problem = pose(moments, weight, channels.unit[consumer.labels][None], settings)
        parts = blocks(group, problem, channels, settled, alive)
        curves.append(greedy(parts, len(group.units), stop=2).error)
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-6, atol=1e-7)


def test_the_form_is_the_cheaper_one() -> None:
    assert row_moments.share(25_088, 512, 9) == 1
    assert row_moments.share(4608, 2000, 9) is None
    assert row_moments.share(4608, 576, 9) == 1
    assert row_moments.share(4608, 577, 9) is None
    assert row_moments.share(576, 64, 9) is None
    assert row_moments.share(576, 64, 9, 32) == 1
    assert row_moments.share(576, 200, 9, 32) is None
    assert row_moments.share(9, 1, 9, 4096) is None
    assert row_moments.share(2376, 256, 9, 11) == 1
    assert row_moments.share(4608, 25_088, 9) is None
    assert row_moments.share(512, 8, 9) is None
    assert row_moments.share(512, 8, 1) is None
    assert row_moments.share(1024, 64, 1) == 1
    assert row_moments.share(11_008, 700, 1) is None
    assert row_moments.share(11_008, 512, 1) == 1
    assert row_moments.share(25_088, 512, 1) == 1
    assert row_moments.share(18_432, 200_000, 9) == pytest.approx(row_moments.ROWS / 200_000)


def test_of_too_many_rows_some_are_kept_those_of_input_and_target_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_moments, "FEW", 0)
    monkeypatch.setattr(row_moments, "FEW_OF_ONE", 0)
    monkeypatch.setattr(row_moments, "SCARCE", 2)
    monkeypatch.setattr(row_moments, "MANY", 10)
    monkeypatch.setattr(row_moments, "WIDE", 10)
    x = draw(40, 3, 6, 6)
    y = torch.nn.functional.conv2d(x, draw(2, 3, 3, 3, seed=1), padding=1)
    collector = Collector(CONV, 2)
    collector.add(x[:20])
    collector.add(x[20:])
    moments = collector.moments()
    assert isinstance(moments, RowMoments)
    targets = Targets(moments, CONV)
    targets.add(x[:7], y[:7])
    targets.add(x[7:], y[7:])
    kept = moments.inputs.shape[2]
    assert kept == pytest.approx(13, abs=1)  # half of 27 columns
    whole = draw(2, 3, 3, 3, seed=1).reshape(2, 27)
    torch.testing.assert_close(torch.cat(moments.targets, 2)[0], whole @ moments.inputs[0], rtol=1e-10, atol=1e-10)


class Both(Team):
    """Two processes in one, which have found the same kind of thing."""

    def __init__(self, other: object) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "other", other)

    def gathered(self, value: Any) -> list[Any]:
        return [value, vars(self)["other"]]


def test_rows_of_two_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_moments, "FEW", 0)
    monkeypatch.setattr(row_moments, "FEW_OF_ONE", 0)
    monkeypatch.setattr(row_moments, "MANY", 0)
    monkeypatch.setattr(row_moments, "WIDE", 0)
    x, y, weight = draw(4, 12), draw(4, 5, seed=1), draw(1, 12, 5, seed=2)

    def collected(some: slice) -> RowMoments:
        collector = Collector(LinearReader(), 4 / len(x[some]))
        collector.add(x[some])
        targets = Targets(collector.moments(), LinearReader())
        targets.add(x[some], y[some])
        moments = targets.moments()
        assert isinstance(moments, RowMoments)
        return moments

    one, two, whole = collected(slice(0, 2)), collected(slice(2, 4)), collected(slice(0, 4))
    inputs = Both(two.inputs).inputs(one)
    joined = Both(two.targets).targets(inputs)
    assert isinstance(joined, RowMoments)
    unit = np.arange(12)[None]
    expected = pose(whole, weight, unit, Settings()).solution()
    torch.testing.assert_close(pose(joined, weight, unit, Settings()).solution(), expected)


@pytest.mark.parametrize("rows", [40, 300])
def test_large_weights_stay_in_the_precision_they_came_in(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is as large as the network no copy in float64 is made, and nothing but rounding is lost."""
    monkeypatch.setattr(row_moments, "MANY", 0)
    monkeypatch.setattr(row_moments, "WIDE", 0)
    monkeypatch.setattr(row_moments, "FEW", 0)
    monkeypatch.setattr(row_moments, "FEW_OF_ONE", 0)
    x, weight, unit = draw(rows, 90), draw(1, 90, 7, seed=1), np.repeat(np.arange(30), 3)[None]
    found = []
    for kind in (torch.float32, F64):
        moments = RowMoments(x.mT[None].float(), 1.0).towards(weight.to(kind))
        problem = pose(moments, weight.to(kind), unit, Settings(ridge=1e-2))
        alive = np.arange(30) % 3 > 0
        solution = problem.only(alive).solution()
        assert solution.dtype == kind
        part = problem.equations.system(0).part(torch.from_numpy(unit[0]), 1.0)
        found.append((solution.double(), greedy([part], 30).order))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert found[0][1].tolist() == found[1][1].tolist()
