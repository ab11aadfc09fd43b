"""Mixtures of experts: what the data sends where is pruned like what goes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import against_masked
from torch import Tensor, nn

import subprune_fx
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.frontends.fx_routed import routed, sent
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.proof import difference, halved
from subprune_fx.passes.write import write_all

ROUNDING = 1e-5
"""Relative, of float32; a wrong channel gives 0.1 and more."""


class Experts(nn.Module):
    """Four experts of 16 channels, two of them for each token; `forward` of a subclass multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(8, 16), nn.Linear(16, 4, bias=False), nn.Linear(16, 5)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 16) / 4), nn.Parameter(torch.randn(4, 16, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        tokens = x.flatten(0, 1)
        weights, ids = torch.topk(torch.softmax(self.gate(tokens), -1), 2)
        made = self.experts(tokens, ids.flatten()) * weights.reshape(-1, 1)
        y: Tensor = self.last(x + made.reshape(-1, 2, x.shape[-1]).sum(1).reshape(x.shape))
        return y

    def experts(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Two rows for each token."""
        raise NotImplementedError


class Batched(Experts):
    """As transformers' `batched_mm`."""

    def experts(self, tokens: Tensor, ids: Tensor) -> Tensor:
        rows = tokens.repeat_interleave(2, 0)[..., None]
        return torch.bmm(self.down[ids], torch.relu(torch.bmm(self.up[ids], rows)))[..., 0]


class Selected(Experts):
    """The same by index_select and einsum."""

    def experts(self, tokens: Tensor, ids: Tensor) -> Tensor:
        rows = tokens.repeat_interleave(2, 0)
        made = torch.relu(torch.einsum("si,soi->so", rows, self.up.index_select(0, ids)))
        return torch.einsum("soi,si->so", self.down.index_select(0, ids), made)


class Sorted(Experts):
    """As transformers' `grouped_mm`."""

    def experts(self, tokens: Tensor, ids: Tensor) -> Tensor:
        order = torch.argsort(ids)
        ends = torch.cumsum(nn.functional.one_hot(ids, 4).sum(0), 0).to(torch.int32)
        made = torch.relu(nn.functional.grouped_mm(tokens[order // 2], self.up.transpose(1, 2), offs=ends))
        return nn.functional.grouped_mm(made, self.down.mT, offs=ends)[torch.argsort(order)]


class Dense(Experts):
    """Every expert sees every token; what is not sent counts nothing."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        weights = torch.softmax(self.gate(x), -1)
        made = torch.relu(torch.einsum("btec,ehc->bteh", x[:, :, None].expand(-1, -1, 4, -1), self.up))
        made = torch.einsum("bteh,ech->btec", made, self.down)
        y: Tensor = self.last(x + torch.einsum("btec,bte->btc", made, weights))
        return y


ROUTED = (Batched, Selected, Sorted)


def trained(kind: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """A network, the same whichever way it multiplies, and inputs."""
    torch.manual_seed(0)
    return kind().eval(), torch.randn(64, 6, 8)


def test_rows_are_sent() -> None:
    wanted = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)[..., None]
    assert torch.equal(sent(torch.tensor([1, 1, 2]), 3, 3), wanted)
    assert torch.equal(sent(torch.tensor([0, 2, 3]), 3, 3, rows=3), wanted)


@pytest.mark.parametrize("kind", ROUTED)
def test_it_comes_back_as_it_was(kind: Callable[[], nn.Module]) -> None:
    model, x = trained(kind)
    graph = next(traces(model, x))
    assert [node.target for node in graph.graph.nodes].count(routed) == 2
    torch.testing.assert_close(spread(graph)(x), model(x))
    assert routed not in [node.target for node in graph.graph.nodes]


@pytest.mark.parametrize("kind", ROUTED)
def test_experts_are_pruned_inside_and_outside(kind: Callable[[], nn.Module]) -> None:
    model, x = trained(kind)
    network = analyse(model, x[:2])
    assert [len(group.units) for group in network.channels.groups] == [16, 16]
    assert against_masked(network, *halved(network), x) < ROUNDING


@pytest.mark.parametrize("kind", ROUTED)
def test_refitted_experts_are_nearer(kind: Callable[[], nn.Module]) -> None:
    model, x = trained(kind)
    fresh = torch.randn(256, 6, 8)
    small, _, report = subprune_fx.prune(model, x, keep=0.5)
    left, _, _ = subprune_fx.prune(model, x, keep=0.5, reweight=False)
    assert dict(small.named_parameters())["up"].shape == (4, 8, 8)
    assert report.achieved > 3  # a quarter of both stacks
    with torch.no_grad():
        wanted = model(fresh)
        apart, unfitted = (float((one(fresh) - wanted).norm() / wanted.norm()) for one in (small, left))
    assert apart < 0.8 * unfitted  # 0.65 to 0.75 were seen


def test_odd_widths_that_grouped_mm_refuses_run_all_the_same() -> None:
    model, x = trained(Sorted)
    small, plan, _ = subprune_fx.prune(model, x, keep=0.4)
    network = analyse(model, x[:2])
    assert dict(small.named_parameters())["up"].shape == (4, 6, 6)
    with torch.no_grad():
        assert difference(small(x), Masked(network, plan).run(x)) < ROUNDING


def test_experts_are_written(tmp_path: Path) -> None:
    model, x = trained(Batched)
    pruned = subprune_fx.prune(model, x, keep=0.5)
    files = write_all(pruned.module, model, x[:1], x, [tmp_path / name for name in ("a.onnx", "a.pt2")])
    assert all(file.max_difference is not None and file.max_difference < ROUNDING for file in files)
    own = subprune_fx.apply(pruned.plan, Batched()).eval()
    own.load_state_dict(pruned.module.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(own.up, pruned.module.up)


def test_every_token_may_meet_every_expert() -> None:
    model, x = trained(Dense)
    network = analyse(model, x[:2])
    assert [len(group.units) for group in network.channels.groups] == [16, 16]
    assert against_masked(network, *halved(network), x) < ROUNDING
    for variant in ("asym", "seq", "layer"):
        small, _, _ = subprune_fx.prune(model, x, keep=0.5, variant=variant)
        left, _, _ = subprune_fx.prune(model, x, keep=0.5, variant=variant, reweight=False)
        with torch.no_grad():
            apart, unfitted = (float((one(x) - model(x)).norm()) for one in (small, left))
        assert apart < 0.8 * unfitted
