"""Greedy on Gram matrices picks what greedy on the data picks, and its error curve is the residual."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from subprune_fx.errors import SubpruneError
from subprune_fx.numerics import blocks as module
from subprune_fx.numerics.blocks import Block
from subprune_fx.numerics.cholesky import factor
from subprune_fx.numerics.greedy import Selection, greedy, whole

ROUNDING = 1e-9
"""Of an error relative to ||Y||^2: normal equations lose half of float64's 16 digits, small problems less."""

# Where columns depend on each other, TOLERANCE decides what is a column; what it hides may be that large.
DEFICIENT = 1e-5


@dataclasses.dataclass(frozen=True)
class Data:
    """One consumer: design matrix, targets, the unit of each column, weight in the sum."""

    design: NDArray[np.float64]
    target: NDArray[np.float64]
    unit: NDArray[np.int64]
    scale: float = 1.0

    def block(self) -> Block:
        b, y = torch.from_numpy(self.design), torch.from_numpy(self.target)
        return Block(b.T @ b, b.T @ y, torch.from_numpy(self.unit), float(y.square().sum()), self.scale)

    def error(self, kept: Sequence[int]) -> float:
        """Directly: the residual of numpy's least squares."""
        used = self.design[:, np.isin(self.unit, kept)]
        weights = np.linalg.lstsq(used, self.target, rcond=1e-9)[0] if used.shape[1] else np.zeros((0, 1))
        left = self.target - (used @ weights if used.shape[1] else 0)
        return self.scale * float(np.square(left).sum())


def problem(
    units: int, widths: Sequence[int], *, rows: int = 60, targets: int = 3, scale: float = 1.0, seed: int = 0
) -> Data:
    """Correlated columns in shuffled order; unit u has `widths[u % len(widths)]` of them."""
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.repeat(np.arange(units), [widths[u % len(widths)] for u in range(units)]))
    mixed = rng.normal(size=(unit.size, unit.size)) + 2 * np.eye(unit.size)
    design = rng.normal(size=(rows, unit.size)) @ mixed
    target = design @ rng.normal(size=(unit.size, targets)) + rng.normal(size=(rows, targets))
    return Data(design, target, unit.astype(np.int64), scale)


def energy(data: Sequence[Data]) -> float:
    return sum(part.error(()) for part in data)


def directly(data: Sequence[Data], units: int, stop: int) -> tuple[list[int], list[float]]:
    """Paper Algorithm 1, every candidate by its own least squares."""
    order: list[int] = []
    curve = [energy(data)]
    for _ in range(stop):
        errors = {u: sum(part.error([*order, u]) for part in data) for u in range(units) if u not in order}
        best = min(errors, key=lambda u: errors[u])
        order.append(best)
        curve.append(errors[best])
    return order, curve


def check_curve(data: Sequence[Data], found: Selection, tolerance: float = ROUNDING) -> None:
    """The curve is what numpy finds for the same prefixes, and never rises."""
    order = found.order.tolist()
    again = [sum(part.error(order[:k]) for part in data) for k in range(len(order) + 1)]
    np.testing.assert_allclose(found.error.numpy(), again, rtol=0, atol=tolerance * energy(data))
    assert bool((found.error.diff() <= 0).all())


def check_picks(data: Sequence[Data], units: int, found: Selection, tolerance: float = ROUNDING) -> None:
    """Every pick is as good as the best there was: with ties there are several right orders."""
    order = found.order.tolist()
    assert len(set(order)) == len(order)
    for k, pick in enumerate(order):
        errors = {u: sum(part.error([*order[:k], u]) for part in data) for u in range(units) if u not in order[:k]}
        assert errors[pick] <= min(errors.values()) + tolerance * energy(data), (k, pick)


CASES: dict[str, list[Data]] = {
    "one column a unit": [problem(9, [1])],
    "blocks": [problem(7, [3])],
    "ragged": [problem(8, [3, 1, 2])],
    "several consumers": [problem(6, [1], seed=1, scale=0.3), problem(6, [3], seed=2, targets=5, scale=2.0)],
    "alike consumers": [problem(6, [2], seed=s, targets=t, scale=s + 0.5) for s, t in ((1, 4), (2, 4), (3, 1))],
    "other column order, other targets": [problem(6, [2, 1], seed=s, targets=s) for s in (1, 2, 5)],
    "many targets": [problem(5, [2], targets=40)],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("panel", [1, 3, 4, 384])
def test_equals_least_squares_greedy(name: str, panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PANEL", panel)
    data = CASES[name]
    units = int(max(part.unit.max() for part in data)) + 1
    order, curve = directly(data, units, units)
    found = greedy([part.block() for part in data], units)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.error.numpy(), curve, rtol=0, atol=ROUNDING * energy(data))
    check_curve(data, found)


def test_consumers_may_read_different_units() -> None:
    """A consumer of half of the units, one of the other half, one of all: each counts where it reads."""
    first, second, both = problem(8, [2], seed=1), problem(8, [1], seed=2), problem(8, [1, 2], seed=3)
    low, high = first.unit < 4, second.unit >= 3
    data = [
        dataclasses.replace(first, design=first.design[:, low], unit=first.unit[low]),
        dataclasses.replace(second, design=second.design[:, high], unit=second.unit[high]),
        both,
    ]
    order, curve = directly(data, 8, 8)
    found = greedy([part.block() for part in data], 8)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.error.numpy(), curve, rtol=0, atol=ROUNDING * energy(data))


def test_a_unit_nobody_reads_comes_last() -> None:
    data = problem(5, [2])
    found = greedy([data.block()], 6)
    assert found.order[-1] == 5
    assert found.error[5] == found.error[6]


@pytest.mark.parametrize("seed", range(3))
def test_blocks_may_come_in_any_order(seed: int) -> None:
    """Stacking is an optimisation: neither the blocks' order nor that of their columns matters."""
    data = [problem(6, [2], seed=s, targets=s + 1) for s in range(3)] + [problem(6, [1, 2], seed=9)]
    found = greedy([part.block() for part in data], 6)
    rng = np.random.default_rng(seed)
    shuffled = []
    for i in rng.permutation(len(data)):
        columns = rng.permutation(data[i].unit.size)
        shuffled.append(dataclasses.replace(data[i], design=data[i].design[:, columns], unit=data[i].unit[columns]))
    again = greedy([part.block() for part in shuffled], 6)
    assert again.order.tolist() == found.order.tolist()
    torch.testing.assert_close(again.error, found.error, rtol=0, atol=ROUNDING * energy(data))


@pytest.mark.parametrize("stop", [1, 3, 6, 50])
def test_stop_gives_a_prefix(stop: int) -> None:
    block = problem(6, [3]).block()
    whole, part = greedy([block], 6), greedy([block], 6, stop=stop)
    assert part.order.tolist() == whole.order.tolist()[:stop]
    assert part.error.tolist() == whole.error.tolist()[: stop + 1]


def test_everything_kept_is_the_original() -> None:
    """A target that is a product with the design has nothing left; another one what least squares leaves."""
    noisy = problem(6, [3])
    exact = dataclasses.replace(noisy, target=noisy.design @ np.random.default_rng(1).normal(size=(18, 4)))
    for data in (noisy, exact):
        last = float(greedy([data.block()], 6).error[-1])
        assert last == pytest.approx(data.error(range(6)), abs=ROUNDING * energy([data]))
    assert float(greedy([exact.block()], 6).error[-1]) < ROUNDING * energy([exact])


def deficient(kind: str, widths: Sequence[int], seed: int) -> Data:
    """Problems whose Gram matrix is singular."""
    data = problem(6, widths, seed=seed)
    rng = np.random.default_rng(seed)
    design, rows = data.design.copy(), len(data.design)
    if kind == "duplicated":
        for source, copy in ((0, 1), (2, 3)):
            columns = np.flatnonzero(data.unit == source)
            design[:, np.flatnonzero(data.unit == copy)] = (
                0.7 * design[:, np.resize(columns, (data.unit == copy).sum())]
            )
    elif kind == "dead":
        design[:, np.isin(data.unit, (1, 4))] = 0
    elif kind == "overlapping":
        design[:, 1:] = np.where(rng.random(design.shape[1] - 1) < 0.5, design[:, :-1], design[:, 1:])
    elif kind == "few rows":
        rows = 4
    elif kind == "one row":
        rows = 1
    design = design[:rows]
    target = design @ rng.normal(size=(design.shape[1], 3))
    return dataclasses.replace(data, design=design, target=target)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", [[1], [3], [3, 1]])
@pytest.mark.parametrize("kind", ["duplicated", "dead", "overlapping", "few rows", "one row"])
def test_rank_deficiency(kind: str, widths: list[int], seed: int) -> None:
    data = [deficient(kind, widths, seed)]
    found = greedy([part.block() for part in data], 6)
    check_curve(data, found, DEFICIENT)
    check_picks(data, 6, found, DEFICIENT)
    assert float(found.error[-1]) < DEFICIENT * energy(data)


@pytest.mark.parametrize("widths", [[1], [3, 1]])
def test_all_units_need_no_order(widths: list[int]) -> None:
    data = [problem(6, widths, seed=seed, scale=1.0 + seed) for seed in range(2)]
    parts = [part.block() for part in data]
    assert whole(parts) == pytest.approx(float(greedy(parts, 6).error[-1]), abs=ROUNDING * energy(data))


@pytest.mark.parametrize("width", [1, 2])
def test_a_consumer_that_is_explained_early(width: int) -> None:
    """Its remaining columns are rounding for a hundred pivots that other consumers ask for."""
    rng = np.random.default_rng(5)
    data = []
    for rows in (20, 30, 600):
        unit = np.repeat(np.arange(150), width)
        design = rng.normal(size=(rows, unit.size)) @ rng.normal(size=(unit.size, unit.size)) / unit.size**0.5
        data.append(Data(design, design @ rng.normal(size=(unit.size, 4)), unit, 1.0))
    found = greedy([part.block() for part in data], 150)
    check_curve(data, found, DEFICIENT)
    assert float(found.error[-1]) < DEFICIENT * energy(data)


def test_a_copy_gains_nothing() -> None:
    """All that is new comes before the second of two equal units, however little it brings."""
    data = problem(5, [2], seed=3)
    columns = [np.flatnonzero(data.unit == u) for u in range(5)]
    rng = np.random.default_rng(0)
    design = data.design.copy()
    design[:, columns[1]] = design[:, columns[0]]
    weights = rng.normal(size=(10, 3))
    weights[columns[4]] *= 1e-4  # its share of ||Y||^2 is 1e-8
    found = greedy([dataclasses.replace(data, design=design, target=design @ weights).block()], 5)
    assert int(found.order[-1]) in (0, 1)


def test_scale_of_a_column_does_not_matter() -> None:
    """Least squares does not know units of measurement: nor do the picks."""
    data = problem(6, [2], seed=4)
    scaled = dataclasses.replace(data, design=data.design * np.geomspace(1e-6, 1e6, 12))
    one, other = greedy([data.block()], 6), greedy([scaled.block()], 6)
    assert other.order.tolist() == one.order.tolist()
    torch.testing.assert_close(other.error, one.error, rtol=0, atol=ROUNDING * energy([data]))


def test_no_energy() -> None:
    """A consumer of dead channels only: any order, no error, no NaN."""
    data = Data(np.zeros((10, 4)), np.zeros((10, 2)), np.repeat(np.arange(2), 2))
    found = greedy([data.block()], 2)
    assert sorted(found.order.tolist()) == [0, 1]
    assert found.error.tolist() == [0, 0, 0]


@given(
    shape=st.tuples(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4)),
    rows=st.integers(2, 40),
    consumers=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@examples(max_examples=60)
def test_any_problem(shape: tuple[int, list[int], int], rows: int, consumers: int, seed: int) -> None:
    units, widths, targets = shape
    data = [problem(units, widths, rows=rows, targets=targets, seed=seed + c) for c in range(consumers)]
    found = greedy([part.block() for part in data], units)
    check_curve(data, found, DEFICIENT)
    check_picks(data, units, found, DEFICIENT)


def test_greedy_is_near_the_best_subset() -> None:
    """Against all subsets of each size: within the (1 - e^-gamma) of Prop. 3.1 with room to spare."""
    data = [problem(8, [2], seed=5)]
    found = greedy([part.block() for part in data], 8)
    top = energy(data)
    for k in range(1, 8):
        best = max(top - sum(p.error(kept) for p in data) for kept in itertools.combinations(range(8), k))
        assert top - float(found.error[k]) >= (1 - math.exp(-1)) * best


def stochastic(block: Block, units: int, stop: int, seed: int, epsilon: float = 0.1) -> Selection:
    return greedy([block], units, stop=stop, epsilon=epsilon, generator=torch.Generator().manual_seed(seed))


def test_stochastic_greedy_is_repeatable() -> None:
    block = problem(30, [2], rows=120).block()
    same = [stochastic(block, 30, 10, seed=7) for _ in range(2)]
    assert torch.equal(same[0].order, same[1].order)
    assert torch.equal(same[0].error, same[1].error)
    assert len({tuple(stochastic(block, 30, 10, seed=s).order.tolist()) for s in range(5)}) > 1


def test_stochastic_greedy_keeps_its_promise() -> None:
    """On average F is at least (1 - 1/e - epsilon) of greedy's (paper App. B.3); here it comes much closer."""
    data = problem(40, [1], rows=120)
    block, top = data.block(), energy([data])
    exact = top - float(greedy([block], 40, stop=10).error[-1])
    gains = [top - float(stochastic(block, 40, 10, seed=s).error[-1]) for s in range(20)]
    assert (1 - 1 / math.e - 0.1) * exact <= np.mean(gains) <= exact
    check_curve([data], stochastic(block, 40, 10, seed=0))


def test_stochastic_greedy_looks_at_few() -> None:
    """n/k log(1/epsilon) candidates: with one candidate a step the order is the sampled one, whatever the gains."""
    block = problem(12, [1]).block()
    orders = [stochastic(block, 12, 12, seed=3, epsilon=0.9).order.tolist() for _ in range(1)]
    open_ = torch.arange(12)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(12):
        pick = int(open_[torch.randperm(len(open_), generator=generator)[0]])
        expected.append(pick)
        open_ = open_[open_ != pick]
    assert orders == [expected]


def test_factor_of_a_singular_system_gives_small_weights_that_fit() -> None:
    data = deficient("duplicated", [2], seed=1)
    block = data.block()
    weights = torch.cholesky_solve(block.cross, factor(block.gram)).numpy()
    left = data.target - data.design @ weights
    assert np.square(left).sum() < ROUNDING * energy([data])
    assert np.abs(weights).max() < 100


def test_repairing_one_of_a_batch_leaves_the_others() -> None:
    """A singular matrix beside regular ones: theirs are the factors they have alone."""
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    bad = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-9]], dtype=torch.float64)
    both = factor(torch.stack([good, bad, torch.zeros(2, 2, dtype=torch.float64)]))
    assert torch.equal(both[0], factor(good))
    assert bool(torch.isfinite(both).all())
    torch.testing.assert_close(both[1] @ both[1].T, bad, rtol=0, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 2])
def test_moments_that_overflow_are_an_error(columns: int) -> None:
    block = problem(4, [columns]).block()
    block.gram[0, 0] = torch.inf
    with pytest.raises(SubpruneError, match="second moments overflow"):
        greedy([block], 4)
