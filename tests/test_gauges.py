"""Targets that are measured: the bytes of the file that is written, and onnxruntime's latency."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from test_onnx_bad import sparse
from test_onnx_graphs import mlp, random
from torch import nn

import subprune_fx
from subprune_fx import SubpruneError
from subprune_fx.bundle import Inputs
from subprune_fx.formats.load import load_model
from subprune_fx.passes import gauges
from subprune_fx.passes.gauges import GAUGES, File, Gauge
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.passes.write import write_all
from subprune_fx.passes.writers import Job
from subprune_fx.plan import Layer

INPUTS = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    """Layers without bias, which get one: it counts in the file."""
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    second = (nn.Conv2d(24, 32, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    return nn.Sequential(*first, *second, nn.Linear(288, 64, bias=False), nn.ReLU(), nn.Linear(64, 5)).eval()


@pytest.mark.parametrize(("suffix", "ratio"), [(".onnx", 2), (".onnx", 5.5), (".pt", 2)])
def test_the_file_is_as_small_as_asked(suffix: str, ratio: float, tmp_path: Path) -> None:
    pruned = subprune_fx.prune(network(), INPUTS, ratio=ratio, target="size", file=suffix)
    (row,) = write_all(pruned.module, network(), INPUTS[:1], INPUTS, [tmp_path / f"small{suffix}"])
    assert row.bytes_before is not None
    assert row.bytes_before >= ratio * row.bytes
    assert row.bytes_before < 1.15 * ratio * row.bytes  # 5 % of the ratio of parameters, and channels are whole
    assert pruned.report.ratio == ratio
    assert any(step.value == pytest.approx(row.bytes_before / row.bytes, rel=0.01) for step in pruned.report.searched)


def test_widths_are_what_they_are_elsewhere_unless_the_user_says() -> None:
    """Multiples of 4 where a convolution reads them; fixed layers as they are."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(48, 48, 3, groups=48)
    layers = (nn.Conv2d(3, 48, 1), nn.ReLU(), depthwise, nn.Conv2d(48, 20, 1), nn.ReLU(), nn.Conv2d(20, 5, 1))
    options = {"ratio": 1.3, "target": "size", "file": ".pt", "layers": [Layer("3", channels=13)]}
    pruned = subprune_fx.prune(nn.Sequential(*layers).eval(), INPUTS, **options)  # type: ignore[arg-type]
    kept = {row.name: row.kept for row in pruned.report.groups}
    assert kept["3"] == 13
    assert kept["0"] < 48
    assert kept["0"] % 4 == 0
    assert dict(pruned.report.settings)["align"] == "None"


def test_a_file_that_nobody_asked_for_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        @staticmethod
        def write(_job: Job, path: Path) -> None:
            raise SubpruneError(f"{path} has no room", where=str(path), remedy="make some")

    monkeypatch.setattr(gauges, "writer_of", lambda _path, _module: Writer)
    with pytest.raises(SubpruneError, match=r"^target latency: the \.onnx file that is measured has no room;"):
        subprune_fx.prune(network(), INPUTS, ratio=2, target="latency")


def test_alignments_that_are_tried_do_not_forbid_fixed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "GAUGES", {**GAUGES, "latency": Gauge(".pt", GAUGES["size"].compare, (8, 4))})
    options = {"ratio": 1.2, "target": "latency", "layers": [Layer("0", channels=13)]}
    pruned = subprune_fx.prune(network(), INPUTS, **options)  # type: ignore[arg-type]
    assert {row.name: row.kept for row in pruned.report.groups}["0"] == 13
    with pytest.raises(SubpruneError, match="13 channels are not aligned to 8"):
        subprune_fx.prune(network(), INPUTS, align=8, **options)  # type: ignore[arg-type]


def test_trials_may_be_larger_than_the_file_that_was_given(tmp_path: Path) -> None:
    """It holds a weight as a sparse tensor, and what is written is dense: only the result has to be so much smaller."""
    made = mlp()
    sparse(1)(made)
    onnx.save(made, tmp_path / "sparse.onnx")
    module, inputs = load_model(tmp_path / "sparse.onnx").module, torch.from_numpy(random(64, 6))
    small = subprune_fx.prune(module, inputs, ratio=1.2, target="size", file=".onnx").module
    write_all(small, None, inputs[:1], inputs, [tmp_path / "small.onnx"])
    assert (tmp_path / "small.onnx").stat().st_size <= (tmp_path / "sparse.onnx").stat().st_size / 1.2


def test_the_largest_reachable_size_ratio_is_named() -> None:
    with pytest.raises(SubpruneError, match="size ratio 5000 cannot be reached: with as few channels as possible"):
        subprune_fx.prune(network(), INPUTS, ratio=5000, target="size")


def test_where_nothing_can_be_pruned_what_stands_in_the_way_is_named() -> None:
    with pytest.raises(SubpruneError, match=r"ratio 2 cannot be reached: next to nothing can be pruned; lower --align"):
        subprune_fx.prune(network(), INPUTS, ratio=2, align=1000)


def test_latency_decides_with_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the file's bytes and a fixed time for a call, which bounds the ratio."""
    seen = []

    def clock(before: File, after: File, example: Inputs, threads: int) -> float:
        seen.append((after.path.suffix, len(example), threads))
        return (20_000 + before.size) / (20_000 + after.size)

    monkeypatch.setattr(gauges, "GAUGES", {**GAUGES, "latency": Gauge(".onnx", clock)})
    found = subprune_fx.prune(network(), INPUTS, ratio=2, target="latency", threads=3).report
    assert set(seen) == {(".onnx", 1, 3)}
    reached = [step for step in found.searched if step.value >= 2]
    missed = [step for step in found.searched if step.value < 2]
    assert min(step.ratio for step in reached) < 1.05 * max(step.ratio for step in missed)
    assert found.speedup >= min(step.ratio for step in reached)
    with pytest.raises(SubpruneError, match="latency ratio 50 cannot be reached"):
        subprune_fx.prune(network(), INPUTS, ratio=50, target="latency")


def test_latency_as_onnxruntime_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "PATIENCE", 0.3)
    pruned = subprune_fx.prune(network(), INPUTS, ratio=1.5, target="latency")
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    write_all(pruned.module, None, INPUTS[:1], INPUTS, [small])
    write_all(network(), None, INPUTS[:1], INPUTS, [large])
    fast, slow = latencies_ms([small, large], INPUTS[:1], seconds=0.5)
    assert slow / fast > 1.2  # other programs' work comes and goes between one measurement and the next
    last = [step.value for step in pruned.report.searched if step.value >= 1.5]
    assert last
    assert all(math.isfinite(value) for value in last)


def test_files_are_timed_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_all(network(), None, INPUTS[:1], INPUTS, [path])
    first, second = latencies_ms([path, path], INPUTS[:1], seconds=0.3)
    assert 1 / 1.5 < first / second < 1.5  # the same file; two cores are shared with others
