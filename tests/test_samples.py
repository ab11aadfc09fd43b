"""Sizes that depend on the samples and on the heads at once, in torch and as the older exporter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.formats.load import load_model
from subprune_fx.frontends import onnx_resize
from subprune_fx.frontends.onnx_static import fixed_batch, resolve_batch

HEADS = 4


class Folded(nn.Module):
    """Heads stand beside the samples: (samples x heads, width, positions)."""

    def __init__(self, *, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.first, self.qkv = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 48, 1)
        self.out, self.last = nn.Conv1d(16, 16, 1), nn.Conv1d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, t = x.shape
        q, k, v = self.qkv(x).reshape(n * HEADS, 3 * c // HEADS, -1).split(c // HEADS, dim=1)
        if self.mean:
            v = v + v.mean(-1, keepdim=True).expand(n * HEADS, c // HEADS, t)
        scores = torch.einsum("bct,bcs->bts", q, k).softmax(-1)
        found: Tensor = self.last(x + self.out(torch.einsum("bts,bcs->bct", scores, v).reshape(n, c, t)))
        return found


def exported(mean: bool, x: Tensor, path: Path) -> nn.Module:
    model, axes = Folded(mean=mean).eval(), {"input": {0: "n"}}
    torch.onnx.export(model, (x[:2],), path, dynamo=False, input_names=["input"], dynamic_axes=axes, opset_version=17)
    return load_model(path).module


@pytest.mark.parametrize("onnx", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_heads_beside_samples(tmp_path: Path, mean: bool, onnx: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6)
    model = exported(mean, x, tmp_path / "a.onnx") if onnx else Folded(mean=mean).eval()
    small, _, report = subprune_fx.prune(model, x, keep=0.5)
    assert [(row.channels, row.kept) for row in report.groups] == [(16, 8), (HEADS, HEADS // 2)]
    for count in (1, 3, 5):
        torch.testing.assert_close(small(x[:count]), small(x)[:count], rtol=1e-4, atol=1e-5)
    (row,) = subprune_fx.save(small, tmp_path / "b.onnx", inputs=x)
    assert row.max_difference is not None
    assert row.max_difference < 1e-4  # float32 rounding


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_size_taken_from_two_samples_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6)

    def baked(site: Any, keep: Any) -> list[tuple[tuple[str | int, ...], Any]]:
        return [
            (path, site.after.shape[int(path[-1])] // 2 if value == -1 else value) for path, value in right(site, keep)
        ]

    right = onnx_resize._RULES["Reshape"]
    monkeypatch.setattr(onnx_resize, "_RULES", {**onnx_resize._RULES, "Reshape": baked})
    _, _, report = subprune_fx.prune(exported(False, x, tmp_path / "a.onnx"), x, keep=0.5)
    assert [row.channels for row in report.groups] == [16]
    assert any("pruned and masked network differ" in row.reason for row in report.frozen)


class TimeFirst(nn.Module):
    """Scores by position, then by sample, as text recognisers have them; or with a number of samples built in."""

    def __init__(self, samples: int | None) -> None:
        super().__init__()
        self.samples = samples
        self.first, self.last = nn.Conv1d(3, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.samples is not None:
            x = x.reshape(self.samples, 16, 6)
        found: Tensor = self.last(x.permute(2, 0, 1))
        return found


@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_samples_on_the_second_dimension(tmp_path: Path, samples: int | None) -> None:
    torch.manual_seed(0)
    x, path, axes = torch.randn(16, 3, 6), tmp_path / "a.onnx", {"x": {0: "n"}}
    model = TimeFirst(samples).eval()
    torch.onnx.export(model, (x[:2],), path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
    module = resolve_batch(load_model(path).module, x)
    assert fixed_batch(module) == samples
    small, _, report = subprune_fx.prune(module, x, keep=0.5)
    assert [(row.channels, row.kept) for row in report.groups] == [(16, 8)]
    assert small(x[:2]).shape == (6, 2, 5)
    subprune_fx.save(small, tmp_path / "b.onnx", inputs=x)
