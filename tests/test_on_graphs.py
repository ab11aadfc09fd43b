"""Networks on graphs: what neighbours send is gathered and summed up in the spellings in use, and no channel stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import against_masked
from torch import Tensor, nn

from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved

NODES, EDGES = 7, 20


def added(m: Any, h: Tensor) -> Tensor:
    """By `index_add`, weighed by how many send."""
    sums: Tensor = torch.zeros_like(h).index_add_(1, m.target, h[:, m.source]) / m.count
    return sums


def scattered(m: Any, h: Tensor) -> Tensor:
    """The largest of what comes, by places that are spelled out for every channel."""
    places = m.target[None, :, None].expand(h.size(0), -1, h.size(2))
    return torch.zeros_like(h).scatter_reduce(1, places, h.index_select(1, m.source), "amax", include_self=False)


def weighed(m: Any, h: Tensor) -> Tensor:
    """A softmax over what comes in, of scores that both ends give."""
    scores = (m.sent(h)[:, m.source] + m.got(h)[:, m.target]).sigmoid().exp()
    whole = torch.zeros(len(h), NODES, 1).index_add(1, m.target, scores)
    return torch.zeros_like(h).index_add(1, m.target, h[:, m.source] * scores) / (whole + 1e-6)


SPELLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "added": added,
    "scattered": scattered,
    "weighed": weighed,
    "matmul": lambda m, h: torch.matmul(m.near, h),
    "einsum": lambda m, h: torch.einsum("ij,bjc->bic", m.near, h),
}


class OnGraph(nn.Module):
    """Two rounds, the second with a shortcut, and the largest of all nodes."""

    def __init__(self, round_: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.round = round_
        self.stem, self.second, self.head = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.sent, self.got = nn.Linear(16, 1), nn.Linear(16, 1)
        source, target = torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(0))
        self.register_buffer("source", source)
        self.register_buffer("target", target)
        self.register_buffer("count", torch.bincount(target, minlength=NODES).clamp(min=1)[:, None].float())
        self.register_buffer("near", torch.rand(NODES, NODES))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.second(self.round(self, h.relu()))
        y: Tensor = self.head(self.round(self, h.relu()).amax(1))
        return y


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_channels_pass_from_node_to_node(spelling: str) -> None:
    torch.manual_seed(0)
    model, x = OnGraph(SPELLINGS[spelling]).eval(), torch.randn(3, NODES, 5)
    network = analyse(model, x)
    (group,) = network.channels.groups
    assert set(group.producers) == {"stem", "second"}
    assert group.units.size == 16
    plan, small = halved(network)
    assert against_masked(network, plan, small, x) < 1e-5
    assert len(small(torch.randn(5, NODES, 5))) == 5
