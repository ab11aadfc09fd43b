"""Sums over rows are what the rows give, however they come."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.packed import ROWS, Packed, Waiting

F64 = torch.float64


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Transposed design matrix (2, 5, count) and targets (2, 3, count), away from zero mean."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 5, count, generator=generator, dtype=F64) + 1.5,
        torch.randn(2, 3, count, generator=generator, dtype=F64) - 0.5,
    )


def collected(b: Tensor, y: Tensor, cuts: list[int]) -> Moments:
    found = Moments.zeros(2, 5, 3)
    edges = [0, *sorted(cuts), b.shape[2]]
    for start, stop in itertools.pairwise(edges):
        found.add(b[:, :, start:stop], y[:, :, start:stop])
    return found


def assert_same(left: Moments, right: Moments) -> None:
    for field in dataclasses.fields(Moments):
        torch.testing.assert_close(getattr(left, field.name), getattr(right, field.name), rtol=1e-12, atol=1e-12)


@given(cuts=st.lists(st.integers(0, 40), max_size=5))
@examples(max_examples=20)
def test_by_chunks_as_at_once(cuts: list[int]) -> None:
    b, y = rows(40)
    assert_same(collected(b, y, cuts), collected(b, y, []))


def test_are_what_the_rows_give() -> None:
    b, y = rows(40)
    found = collected(b, y, [7])
    torch.testing.assert_close(found.gram, torch.einsum("gir,gjr->gij", b, b))
    torch.testing.assert_close(found.cross, torch.einsum("gir,gjr->gij", b, y))
    torch.testing.assert_close(found.columns, b.sum(2))
    torch.testing.assert_close(found.targets, y.sum(2))
    torch.testing.assert_close(found.energy, y.square().sum((1, 2)))
    assert found.rows == 40


def test_inputs_alone() -> None:
    """Without targets the input's sums are the same and the target's stay zero."""
    b, y = rows(12)
    found, whole = Moments.zeros(2, 5, 3), collected(b, y, [])
    found.add(b)
    assert torch.equal(found.gram, whole.gram)
    assert torch.equal(found.columns, whole.columns)
    assert not found.cross.any()
    assert not found.energy.any()


def test_centred_are_those_of_centred_rows() -> None:
    b, y = rows(40)
    centred = collected(b, y, []).centred()
    expected = collected(b - b.mean(2, keepdim=True), y - y.mean(2, keepdim=True), [])
    for name in ("gram", "cross", "energy"):
        torch.testing.assert_close(getattr(centred, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    assert centred.rows == 40
    torch.testing.assert_close(centred.columns, b.sum(2))


def test_intercept_is_that_of_a_regression_with_a_constant_column() -> None:
    b, y = rows(40)
    found = collected(b, y, [])
    centred = found.centred()
    weights = torch.linalg.solve(centred.gram, centred.cross)
    shift = found.intercept(weights)
    design = torch.cat([b.mT, torch.ones(2, 40, 1, dtype=F64)], 2)
    direct = torch.linalg.lstsq(design, y.mT).solution
    torch.testing.assert_close(weights, direct[:, :5], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shift, direct[:, 5], rtol=1e-9, atol=1e-9)


def test_an_intercept_never_hurts() -> None:
    b, y = rows(40)
    plain = collected(b, y, [])
    centred = plain.centred()
    left = [m.energy - (m.cross * torch.linalg.solve(m.gram, m.cross)).sum((1, 2)) for m in (plain, centred)]
    assert bool((left[1] <= left[0]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_kept_in_double_precision(dtype: torch.dtype) -> None:
    """Many small batches: the sum must not lose the later ones."""
    found = Moments.zeros(1, 1, 1)
    for _ in range(100):
        found.add(torch.full((1, 1, 1000), 0.1, dtype=dtype), torch.full((1, 1, 1000), 0.1, dtype=dtype))
    exact = 100_000 * float(torch.tensor(0.1, dtype=dtype).double()) ** 2
    assert float(found.gram) == pytest.approx(exact, rel=1e-6)
    assert float(found.energy) == pytest.approx(exact, rel=1e-12)
    assert found.gram.dtype is torch.float64


def test_float32_rows_with_large_means_keep_their_deviations() -> None:
    rows = 300.0 + torch.randn(1, 5, 400)
    targets = 200.0 + rows.mean(1, keepdim=True)
    moments = Moments.zeros(1, 5, 1)
    for part in (slice(0, 150), slice(150, 400)):
        moments.add(rows[:, :, part], targets[:, :, part])
    found = moments.centred()
    x, y = (value.double() - value.double().mean(2, keepdim=True) for value in (rows, targets))
    torch.testing.assert_close(found.gram, x @ x.mT, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(found.cross, x @ y.mT, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [1, 256, 257, 700])
def test_moments_that_wait_take_half_the_room_and_come_back_as_they_were(size: int) -> None:
    moments = Moments.zeros(2, size, 0)
    moments.add(torch.randn(2, size, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    moments.gram += moments.gram.mT.clone()  # symmetric to the last bit
    waiting = Waiting([("a", moments)], {"a": "a", "b": "a"})
    assert list(waiting) == ["a", "b"]
    for name in waiting:
        found = waiting[name]
        assert isinstance(found, Moments)
        assert torch.equal(found.gram, moments.gram)
        assert torch.equal(found.columns, moments.columns)
    if size > ROWS:
        some, one = torch.arange(0, size, 3)[None], Waiting([("a", moments.only(torch.arange(size)[None]))], {"a": "a"})
        whole = one["a"]
        part = one.only("a", some)
        assert isinstance(part, Moments)
        assert isinstance(whole, Moments)
        for name in ("gram", "cross", "columns"):
            assert torch.equal(getattr(part, name), getattr(whole.only(some), name))
    kept = Packed.of(moments)
    assert sum(block.numel() for block in kept.lower) <= 2 * size * (size + ROWS) / 2
