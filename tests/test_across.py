"""ECA's gates, filters that slide over channels: pruned as if the channels that are gone were zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import against_masked
from torch import Tensor, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.fx_across import across
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved
from subprune_fx.passes.write import write_all


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.sigmoid().view(x.shape[0], -1, 1, 1).expand_as(x)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A gate on a branch that is added to what it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.gate = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, padding=1), Gate()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.gate(self.inner(x))).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Waveform(nn.Module):
    """The same layer where there is one channel, and positions are no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth, self.first, self.last = nn.Conv1d(1, 1, 5, padding=2), nn.Conv1d(1, 8, 3), nn.Conv1d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.smooth(x)).relu())  # type: ignore[no-any-return]


def test_dropped_neighbours_are_zeros() -> None:
    torch.manual_seed(0)
    x, weight, bias, kept = torch.randn(2, 1, 9), torch.randn(1, 1, 3), torch.randn(1), [0, 3, 4, 8]
    masked = torch.zeros_like(x)
    masked[..., kept] = x[..., kept]
    wanted = nn.functional.conv1d(masked, weight, bias, padding=1)[..., kept]
    torch.testing.assert_close(across(x[..., kept], weight, bias, kept=kept, size=9), wanted)
    torch.testing.assert_close(across(x, weight, bias), nn.functional.conv1d(x, weight, bias, padding=1))


def test_gated_streams_are_pruned_and_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(64, 3, 8, 8)
    pruned = subprune_fx.prune(model, x, keep=0.5)
    assert [(row.channels, row.kept) for row in pruned.report.groups] == [(12, 6)]
    assert not [node for node in pruned.module.graph.nodes if node.target is across]
    files = write_all(pruned.module, model, x[:1], x, [tmp_path / name for name in ("a.onnx", "a.pt2")])
    assert all(file.max_difference is not None and file.max_difference < 1e-5 for file in files)  # float32 rounding
    again = subprune_fx.repeat(model, pruned.plan, x)
    torch.testing.assert_close(again.module(x), pruned.module(x))
    with pytest.raises(SubpruneError, match=r"written in the code of its forward \(across"):
        subprune_fx.apply(pruned.plan, model)


def test_signals_stay_what_they_are() -> None:
    torch.manual_seed(0)
    model, x = Waveform().eval(), torch.randn(48, 1, 20)
    pruned = subprune_fx.prune(model, x, keep=0.5)
    assert [(row.name, row.channels, row.kept) for row in pruned.report.groups] == [("first", 8, 4)]
    network = analyse(model, x[:2])
    assert against_masked(network, *halved(network), x) < 1e-5  # float32 rounding; a wrong channel gives 0.1 and more
    with torch.no_grad():
        assert torch.equal(spread(next(traces(model, x)))(x), model(x))
