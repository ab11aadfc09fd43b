"""A cap on memory is obeyed, changes nothing that is found, and leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.passes import pipeline
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.memory import Store, batch_within
from subprune_fx.sizes import size_of


class Residual(nn.Module):
    """A branch, a shortcut and views of one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        one, two = self.a(x).chunk(2, 1)
        x = torch.relu(x + self.b(torch.cat([torch.relu(one), torch.sigmoid(two)], 1)))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def mapped(tensor: Tensor) -> bool:
    return tensor.untyped_storage().filename is not None


def test_values_and_sharing_survive() -> None:
    left, right = torch.arange(1000.0).view(2, 500)
    first: dict[Any, Any] = {"left": left, "pair": (right, 3), "small": torch.ones(2)}
    second: dict[Any, Any] = {"same": left}
    store = Store(limit=100)
    store.trim(first, second)
    assert mapped(first["left"])
    assert not mapped(first["small"])
    assert second["same"] is first["left"]
    assert torch.equal(first["left"], torch.arange(500.0))
    assert torch.equal(first["pair"][0], torch.arange(500.0, 1000.0))
    assert first["pair"][0].untyped_storage().data_ptr() == first["left"].untyped_storage().data_ptr()
    assert (store.peak, store.spilled) == (8, 4000)
    before = first["left"]
    store.trim(first, second)
    assert first["left"] is before
    assert store.spilled == 4000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_in_files_leaves_memory() -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    size, before = 1 << 24, resident()
    held: dict[Any, Any] = {"x": torch.ones(size)}
    store = Store(limit=0)
    store.trim(held)
    few = size * 4 // 1024 // 8  # kB, an eighth: other pages of files come and go
    assert resident() - before < few
    assert float(held["x"].sum()) == size
    assert resident() - before > few
    store.trim(held)
    assert resident() - before < few
    assert float(held["x"].sum()) == size


@pytest.mark.skipif(sys.platform != "linux", reason="only there the system tells")
def test_what_was_read_of_a_file_leaves_memory_when_the_next_value_is_asked_for() -> None:
    held: dict[Any, Any] = {name: torch.ones(1 << 23) for name in "abcd"}  # 32 MB each
    store = Store(limit=1)
    store.trim(held)
    start = of_files()
    sums, most = [], 0
    for value in store.passed(held.values()):
        sums.append(float(value.sum()))
        most = max(most, of_files() - start)
    assert sums == [1 << 23] * 4
    assert (1 << 25) // 2 < most < 2 << 25
    assert of_files() - start < (1 << 25) // 2


def of_files() -> int:
    """Bytes of mapped files that are in this process's memory."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssFile"))
    return int(line.split()[1]) * 1024


def test_without_a_limit_nothing_moves() -> None:
    held = {"x": torch.ones(1000)}
    before = held["x"]
    Store().trim(held)
    assert held["x"] is before


def test_what_others_hold_is_left_alone() -> None:
    given = torch.ones(1000)
    held = {"x": given[:500]}
    store = Store(limit=1)
    store.exempt([given])
    store.trim(held)
    assert not mapped(held["x"])
    assert store.peak == 0


def test_a_full_disk_is_one_line_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SubpruneError, match=r"no room for 4 MB .*set TMPDIR"):
        Store(limit=1).trim({"x": torch.ones(1_000_000)})
    assert not list(tmp_path.iterdir())


def test_fewer_samples_at_a_time_where_memory_is_short() -> None:
    module, sample = fx.symbolic_trace(Residual()), torch.ones(1, 3, 8, 8)
    one = 8 * 8 * 8 * 4
    assert batch_within(None, 128, module, sample) == 128
    assert 1 < batch_within(100 * one, 128, module, sample) < 25
    assert batch_within(1, 128, module, sample) == 1
    of_many = torch.ones(1000, 3, 8, 8)[:1]
    assert batch_within(100 * one, 128, module, of_many) == batch_within(100 * one, 128, module, sample)


@pytest.mark.parametrize("variant", ["asym", "seq", "layer"])
def test_a_cap_changes_nothing(variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stores: list[Store] = []

    class Watched(Store):
        def __init__(self, limit: int | None = None) -> None:
            super().__init__(limit)
            stores.append(self)

    monkeypatch.setattr(pipeline, "Store", Watched)
    x, limit = torch.randn(64, 3, 8, 8), 200_000
    model = Residual().eval()
    free = subprune_fx.prune(model, x, ratio=2, variant=variant)
    capped = subprune_fx.prune(model, x, ratio=2, variant=variant, memory=limit)
    assert [d.kept for d in capped.plan.decisions] == [d.kept for d in free.plan.decisions]
    torch.testing.assert_close(capped.module(x), free.module(x), rtol=1e-4, atol=1e-4)  # rounding: other batches
    assert stores[0].spilled == 0
    assert stores[1].spilled > limit
    assert 0 < stores[1].peak <= limit
    assert not list(tmp_path.glob("subprune-*"))


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4 << 30), ("500 MB", 500_000_000), ("10", 10), ("1.5kib", 1536)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "4 apples", "GiB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(SubpruneError, match="is not a size such as 4GiB"):
        subprune_fx.prune(Residual(), torch.ones(2, 3, 8, 8), ratio=2, memory=text)


def test_an_analysis_goes_when_its_network_goes() -> None:
    """Labels of large networks take gigabytes, in few objects: Python's search for cycles would come late."""
    gc.collect()
    gc.disable()
    try:
        network = analyse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(2, 3, 8, 8))
        seen = weakref.ref(network.sites[0].number.args[0])  # type: ignore[attr-defined]
        labels = weakref.ref(network.channels.unit)
        assert seen() is not None
        del network
        assert seen() is None
        assert labels() is None
    finally:
        gc.enable()
