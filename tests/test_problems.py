"""A consumer's least-squares problem, from moments, is the ridge regression it stands for."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from support import Joined
from torch import Tensor

import subprune_fx
from subprune_fx.graph.channels import Group
from subprune_fx.numerics import row_moments
from subprune_fx.numerics.greedy import greedy
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.normal import Normal
from subprune_fx.numerics.row_normal import RowNormal
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.problems import Settings, blocks, column_units, pose
from subprune_fx.samples import inputs_of

F64 = torch.float64
ROUNDING = 1e-9

Data = tuple[Tensor, Tensor, Tensor]


def data(groups: int = 2, rows: int = 50, columns: int = 6, targets: int = 3, seed: int = 0) -> Data:
    """Transposed design (groups, d, rows) and targets (groups, m, rows), neither centred; weights (groups, d, m)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    mixed = draw(groups, columns, columns) @ draw(groups, columns, rows) + draw(groups, columns, 1)
    return mixed, draw(groups, targets, rows) + mixed[:, :targets] + 2, draw(groups, columns, targets)


def moments(b: Tensor, y: Tensor) -> Moments:
    found = Moments.zeros(b.shape[0], b.shape[1], y.shape[1])
    found.add(b, y)
    return found


UNITS = np.array([[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2]])


def directly(b: Tensor, y: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """min ||Y - B W||^2 + lambda ||W - W_0||^2 as one least-squares problem with extra rows; (groups, d, m)."""
    if settings.intercept:
        b, y = b - b.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    size = b.square().sum(2).mean(1)
    root = (settings.pull * size).sqrt()[:, None, None]
    eye = torch.eye(b.shape[1], dtype=F64).expand(b.shape[0], -1, -1)
    design = torch.cat([b.mT, root * eye], 1)
    target = torch.cat([y.mT, root * weight], 1)
    solution: Tensor = torch.linalg.lstsq(design, target).solution
    return solution


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-12, 1e-3, 1.0])
def test_reweighting_is_ridge_regression(intercept: bool, ridge: float) -> None:
    b, y, weight = data()
    settings = Settings(intercept=intercept, ridge=ridge)
    posed = pose(moments(b, y), weight, UNITS, settings)
    torch.testing.assert_close(posed.solution(), directly(b, y, weight, settings), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kept", [{0, 1}, {2}, {1}])
def test_reweighting_on_some_units(intercept: bool, kept: set[int]) -> None:
    """Dropped columns are gone from the regression; the pull is as strong as with all of them."""
    b, y, weight = data()
    settings = Settings(intercept=intercept, ridge=1e-2)
    alive = np.isin(np.arange(3), list(kept))
    new = pose(moments(b, y), weight, UNITS, settings).reweighted(alive)
    for g in range(2):
        mask = torch.from_numpy(alive[UNITS[g]])
        centre = b - b.mean(2, keepdim=True) if intercept else b
        size = centre.square().sum(2).mean(1)[g]
        scaled = centre[g : g + 1, mask].square().sum(2).mean(1)
        own = Settings(intercept=intercept, ridge=float(1e-2 * size / scaled))
        expected = directly(b[g : g + 1, mask], y[g : g + 1], weight[g : g + 1, mask], own)
        torch.testing.assert_close(new[g], expected[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("dead", [0, 3])
def test_all_channels_kept_keep_their_weights(intercept: bool, dead: int) -> None:
    """Also where inputs never vary, and nothing but the pull decides."""
    b, y, weight = data()
    b[:, :dead] = 1.5 if intercept else 0.0
    own = moments(b, y).towards(weight)
    posed = pose(own, weight, UNITS, Settings(intercept=intercept))
    torch.testing.assert_close(posed.reweighted(np.ones(3, dtype=bool)), weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(own.intercept(weight), torch.zeros(2, 3, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alive", [[True, True, True], [True, False, True]])
def test_new_targets_need_no_products_of_inputs(intercept: bool, alive: list[bool]) -> None:
    """The pull is that of the columns that are left, as if they were all there had ever been."""
    b, y, weight = data()
    left, settings = np.array(alive), Settings(intercept=intercept, ridge=1e-2)
    own = moments(b, y)
    posed = pose(own, weight, UNITS, settings, own=True)
    some = own.means().only(posed.kept(left)).untargeted()
    posed = posed.only(left)
    kept = torch.from_numpy(np.stack([np.flatnonzero(left[units]) for units in UNITS]))
    rows = torch.arange(2)[:, None]
    whole = moments(b[rows, kept], -y)
    posed.solution()  # whatever was solved before
    for _ in range(2):
        aimed = dataclasses.replace(some, cross=whole.cross, targets=whole.targets, energy=whole.energy)
        posed = posed.aimed(aimed, settings)
        expected = pose(whole, weight[rows, kept], UNITS, settings)
        torch.testing.assert_close(posed.solution(), expected.solution(), rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(posed.energy, expected.energy, rtol=ROUNDING, atol=0)
        torch.testing.assert_close(aimed.intercept(weight[rows, kept]), whole.intercept(weight[rows, kept]))


def test_own_target_is_the_product_with_the_weights() -> None:
    b, y, weight = data()
    expected = moments(b, (b.mT @ weight).mT)
    found = moments(b, y).towards(weight)
    for name in ("gram", "cross", "columns", "targets", "energy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("few", [1024, 4], ids=["moments", "rows"])
@pytest.mark.parametrize("refit", [True, False])
def test_part_of_a_consumer_is_posed_as_the_whole_says(few: int, refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a concatenation a group's own columns, and those that are sure to stay, are enough."""
    monkeypatch.setattr(row_moments, "FEW", few)
    monkeypatch.setattr(row_moments, "FEW_OF_ONE", few)
    monkeypatch.setattr(row_moments, "MANY", few)
    monkeypatch.setattr(row_moments, "WIDE", few)
    torch.manual_seed(0)
    model = Joined().double()
    x = torch.randn(6, 3, dtype=F64) + 1
    compiler = Compiler(model, inputs_of(x, "x"), Options())
    reweighter, channels = compiler._evidence.reweighter, compiler.network.channels
    (name,) = channels.groups[0].consumers
    whole = reweighter.posed(name)[1]
    assert isinstance(whole.equations, RowNormal if few == 4 else Normal)
    alive = np.ones(channels.prunable.size, dtype=bool)
    for group in channels.groups:
        (expected,) = blocks(group, whole, channels, ~channels.prunable & refit, alive)
        (found,) = compiler._evidence.blocks(group, refit=refit)
        assert reweighter.among(name, alive).unit.size == 12
        units = len(group.units)
        left, right = (greedy([block], units) for block in (found, expected))
        assert torch.equal(left.order, right.order)
        torch.testing.assert_close(left.error, right.error, rtol=ROUNDING, atol=ROUNDING)
        concerned = ~channels.prunable & refit
        concerned[group.units] = True
        assert reweighter.among(name, concerned).unit.size == units + (3 if refit else 0)


@pytest.mark.parametrize("others", ["settled", "open", "gone"])
def test_one_group_of_several(others: str) -> None:
    """What is sure to stay is refitted, what is still open keeps its weights, what is gone is not there."""
    network = analyse(Joined().double(), torch.randn(2, 3, dtype=F64))
    channels = network.channels
    group, other = channels.groups
    assert isinstance(other, Group)
    (consumer,) = (c for name, c in channels.contractions.items() if name in group.consumers)
    unit = column_units(consumer, 1, channels.unit)
    generator = torch.Generator().manual_seed(3)
    b = torch.randn(1, 12, 12, generator=generator, dtype=F64) @ torch.randn(1, 12, 60, generator=generator, dtype=F64)
    weight = torch.randn(1, 12, 3, generator=generator, dtype=F64)
    y = torch.randn(1, 3, 60, generator=generator, dtype=F64) + (b.mT @ weight).mT
    posed = pose(moments(b, y), weight, unit, Settings(intercept=False, ridge=1e-3))
    alive, settled = np.ones(channels.prunable.size, dtype=bool), ~channels.prunable
    if others == "settled":
        settled[other.units] = True
    elif others == "gone":
        alive[other.units[1:]] = False
        settled[other.units] = True
    (block,) = blocks(group, posed, channels, settled, alive)
    found = greedy([block], len(group.units))

    def error(kept: tuple[int, ...]) -> float:
        """Directly: columns that stay at their weights go to the target, the rest is least squares."""
        free = np.isin(unit[0], [0, *group.units[list(kept)]])
        held = np.isin(unit[0], other.units) if others == "open" else np.zeros(12, dtype=bool)
        free |= np.isin(unit[0], other.units[alive[other.units]]) & ~held
        target = (y - (b[:, torch.from_numpy(held)].mT @ weight[:, torch.from_numpy(held)]).mT)[0].mT
        design = b[0].mT * torch.from_numpy(free)
        pulled = weight[0] * torch.from_numpy(~held)[:, None]
        rows = torch.from_numpy(free)
        root = posed.ridge.sqrt()
        wide = torch.cat([design[:, rows], root * torch.eye(12, dtype=F64)[:, rows]])
        aim = torch.cat([target, root * pulled])
        left = aim - wide @ torch.linalg.lstsq(wide, aim).solution
        return float(left.square().sum())

    total = float(posed.energy.sum())
    for k in range(len(group.units) + 1):
        prefix = tuple(found.order[:k].tolist())
        assert float(found.error[k]) == pytest.approx(error(prefix) / total, abs=ROUNDING)
    best = min(itertools.combinations(range(len(group.units)), 1), key=error)
    assert best == (int(found.order[0]),)


class Read(torch.nn.Module):
    """One layer that many read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(12, 12)
        self.readers = torch.nn.ModuleList(torch.nn.Linear(12, 8) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [reader(self.first(x)) for reader in self.readers]


def test_the_error_of_many_readers_is_shown_up_to_one() -> None:
    torch.manual_seed(0)
    _, plan, report = subprune_fx.prune(Read().eval(), torch.randn(64, 12), keep=1 / 12)
    (row,) = report.groups
    assert 0.5 < row.error < 1
    assert plan.decisions[0].error == row.error
    assert all(0 <= error <= 1 for _, error in row.curve)


class Muted(torch.nn.Module):
    """Two layers read one; the second only zeros, and its weights are large where those of the first are small."""

    def __init__(self, volume: float) -> None:
        super().__init__()
        self.volume = volume
        self.first, self.heard, self.silent = (torch.nn.Linear(12, 12) for _ in range(3))
        with torch.no_grad():
            self.heard.weight[:, 0] *= 1e-3
            self.silent.weight[:, 0] = 10

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.heard(x * self.volume) + self.silent(x * 0)
        return out


@pytest.mark.parametrize("volume", [0.0, 1.0])
def test_what_reads_zeros_decides_only_where_nothing_else_does(volume: float) -> None:
    torch.manual_seed(0)
    _, plan, report = subprune_fx.prune(Muted(volume).eval(), torch.randn(64, 12), keep=11 / 12)
    assert (0 in plan.decisions[0].kept) == (volume == 0)
    assert report.groups[0].error < 1e-3
