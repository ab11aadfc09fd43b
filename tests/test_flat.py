"""Weights with a dimension for heads: einsum of an activation and a parameter of three dimensions."""

from __future__ import annotations

import pytest
import torch
from support import against_masked
from torch import Tensor, nn

import subprune_fx
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved


class PerHead(nn.Module):
    """Attention whose weights have dimensions for four heads of three channels."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, channels), nn.Linear(channels, 4)
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(channels, 4, 3) / 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (torch.einsum("btc,chd->bthd", x, weight) for weight in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        y: Tensor = self.last(x + torch.einsum("bthd,chd->btc", torch.einsum("bhij,bjhd->bihd", scores, v), self.o))
        return y


class Crossed(nn.Module):
    """Dimensions in other orders, the parameter first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 4)), nn.Parameter(torch.randn(4, 12, 3))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.einsum("acd,bct->dbta", self.up, self.first(x).relu().transpose(1, 2)).relu()
        y: Tensor = self.last(torch.einsum("dbta,dca->bct", made, self.down).transpose(1, 2))
        return y


@pytest.mark.parametrize(("kind", "units"), [(PerHead, [12, 4]), (Crossed, [12, 4, 12])])
def test_they_are_the_matrices_that_they_are(kind: type[nn.Module], units: list[int]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(64, 5, 8)
    network = analyse(model, x[:2])
    assert [len(group.units) for group in network.channels.groups] == units
    assert against_masked(network, *halved(network), x) < 1e-5  # float32 rounding; a wrong channel gives 0.1 and more


def test_they_are_pruned() -> None:
    torch.manual_seed(0)
    model, x = PerHead().eval(), torch.randn(64, 5, 8)
    pruned = subprune_fx.prune(model, x, keep=0.5)
    assert pruned.report.achieved > 2.8  # all but the first and last layer's outer sides
    again = subprune_fx.repeat(model, pruned.plan, x)
    torch.testing.assert_close(again.module(x), pruned.module(x))
