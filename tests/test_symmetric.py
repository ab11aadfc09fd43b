"""Upper blocks alone give what whole matrices give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from subprune_fx.numerics import symmetric
from subprune_fx.numerics.symmetric import Symmetric, product, squared, strips

SIZES = pytest.mark.parametrize(("size", "unit"), [(12, 1), (60, 1), (63, 9), (64, 4)])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "LEAST", 8)


def every(matrix: Symmetric, size: int, unit: int) -> Tensor:
    return torch.cat([matrix.rows(slice(start, start + unit)) for start in range(0, size, unit)], 1)


@SIZES
def test_updates_and_cuts(size: int, unit: int) -> None:
    half = draw(2, size, size)
    whole = half @ half.mT
    found = Symmetric(whole.clone(), unit)
    for seed in (1, 2):
        left, right = draw(2, 5, size, seed=seed), draw(2, 5, size, seed=seed + 10)
        change = left.mT @ right
        whole -= change + change.mT
        found.subtract(torch.cat([left, right], 1), torch.cat([right, left], 1))
        torch.testing.assert_close(every(found, size, unit), whole)
        columns = (torch.arange(size) // unit % 3 > 0).nonzero()[:, 0]
        whole, found, size = whole[:, columns[:, None], columns], found.only(columns), len(columns)
        torch.testing.assert_close(every(found, size, unit), whole)
    blocks = torch.stack([whole[:, at : at + unit, at : at + unit] for at in range(0, size, unit)], 1)
    torch.testing.assert_close(found.squares(), blocks)


@SIZES
def test_products(size: int, unit: int) -> None:
    rows = draw(size, 7)
    torch.testing.assert_close(every(Symmetric(squared(rows, unit)[None], unit), size, unit)[0], rows @ rows.mT)


@pytest.mark.parametrize("size", [5, 8, 20, 63])
def test_a_product_with_itself(size: int) -> None:
    rows = draw(2, size, 7)
    torch.testing.assert_close(product(rows), rows @ rows.mT)


def test_strips_begin_at_units(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [strip.start for strip in strips(63, 9)] == [0, 9, 18, 27, 36, 45, 54]
    assert strips(20, 1) == [slice(0, 8), slice(8, 16), slice(16, 20)]
    monkeypatch.setattr(symmetric, "LEAST", 256)
    assert strips(200, 1) == [slice(0, 200)]
