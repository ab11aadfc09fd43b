"""Rows that come a few at a time are summed as if they had come together."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from subprune_fx.numerics import batched
from subprune_fx.numerics.batched import Batched
from subprune_fx.numerics.collect import Collector
from subprune_fx.numerics.geometry import ROWS_AT_ONCE
from subprune_fx.numerics.grams import ELEMENTS_AT_ONCE
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.readers import LinearReader
from subprune_fx.numerics.targets import Targets


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("enough", "most"), [(1, 1), (7, 7), (10, 20), (1000, 1000)])
def test_all_rows_come_once_in_order_in_numbers_that_are_worth_it(
    enough: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "enough", lambda columns: enough)
    monkeypatch.setattr(batched, "most", lambda columns: most)
    seen: list[tuple[Tensor, ...]] = []
    waiting = Batched()
    x, y = draw(1, 3, 50), draw(1, 2, 50, seed=1)
    for part in (slice(0, 4), slice(4, 8), slice(8, 43), slice(43, 50)):
        seen += waiting.add(x[:, :, part], y[:, :, part])
    seen += waiting.flush()
    assert waiting.flush() == []
    assert torch.equal(torch.cat([rows for rows, _ in seen], 2), x)
    assert torch.equal(torch.cat([rows for _, rows in seen], 2), y)
    assert all(rows.shape[2] <= most for rows, _ in seen)
    assert len(seen) <= -(-50 // enough) + 4


def test_moments_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(40, 6) + 2, draw(40, 3, seed=1) - 1
    found: list[Moments] = []
    for enough, size in ((1, 40), (16, 3), (1000, 40)):
        monkeypatch.setattr(batched, "enough", lambda columns, enough=enough: enough)
        collector = Collector(LinearReader(), 40 / size)
        for start in range(0, 40, size):
            collector.add(x[start : start + size])
        inputs = collector.moments()
        assert isinstance(inputs, Moments)
        targets = Targets(inputs.untargeted(3), LinearReader())
        for start in range(0, 40, size):
            targets.add(x[start : start + size], y[start : start + size])
        moments = targets.moments()
        assert isinstance(moments, Moments)
        found.append(moments)
    whole = torch.cat([x, y], 1).double()
    products = whole.mT @ whole
    for moments in found:
        assert moments.rows == 40
        torch.testing.assert_close(moments.gram[0], products[:6, :6], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.cross[0], products[:6, 6:], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.columns[0], whole[:, :6].sum(0), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.targets[0], whole[:, 6:].sum(0), rtol=1e-5, atol=1e-4)


def test_wide_layers_wait_for_more_rows() -> None:
    assert batched.enough(64) == 16
    assert batched.most(64) == ROWS_AT_ONCE
    assert batched.most(2048) == ELEMENTS_AT_ONCE // 2048
    assert batched.enough(11_008) == batched.most(11_008) == 2752


@pytest.mark.parametrize("exact", [True, False])
def test_products_go_with_the_last_that_knows_them(exact: bool) -> None:
    """Without the garbage collector, which comes rarely: Gram matrices are what most of the memory goes into."""
    samples = 4 if exact else 40
    gc.disable()
    try:
        collector = Collector(LinearReader())
        collector.add(draw(samples, 6))
        targets = Targets(collector.moments().untargeted(3), LinearReader())
        targets.add(draw(samples, 6), draw(samples, 3))
        left: list[weakref.ref[object]] = [weakref.ref(targets.moments()), weakref.ref(collector), weakref.ref(targets)]
        del collector, targets
        assert [known() for known in left] == [None] * 3
    finally:
        gc.enable()
