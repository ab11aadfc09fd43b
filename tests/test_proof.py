"""Rules that are wrong for an op: the proof finds the groups that suffer, and only those, and says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from support import against_masked
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.optable import BY_TORCH
from subprune_fx.passes import proof
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.proof import difference, fewer, halved, proven
from subprune_fx.plan import Plan

ELEMENTWISE = BY_TORCH["relu"]


class Net(nn.Module):
    """Three layers before the output; an op between the second and the third."""

    def __init__(self, op: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.op = op or torch.relu
        self.stem, self.first, self.second = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 10, 1), nn.Conv2d(10, 12, 1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).relu())
        y: Tensor = self.head(self.second(self.op(x)).relu())
        return y


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_right_rules_pass() -> None:
    network = analyse(Net(), images())
    assert proven(network, images()) is network


@pytest.mark.parametrize(
    ("name", "op", "why"),
    [
        ("flip", lambda x: x.flip(1), "of the largest output"),
        ("channel_shuffle", lambda x: F.channel_shuffle(x, 2), "RuntimeError: "),
    ],
)
def test_wrong_rule(name: str, op: Callable[[Tensor], Tensor], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BY_TORCH, name, ELEMENTWISE)
    net, x = Net(op), images()
    pruned = subprune_fx.prune(net, x, keep=0.5)
    assert [group.name for group in pruned.report.groups] == ["stem", "second"]
    (reason,) = [item.reason for item in pruned.report.frozen if item.name == "first"]
    assert reason.startswith("pruned and masked network differ (")
    assert why in reason
    assert reason in {item.reason for item in subprune_fx.explain(net, x).frozen if item.name == "first"}
    network = proven(analyse(net, x), x)
    assert against_masked(network, pruned.plan, pruned.module, x) < 1e-5
    ranked = subprune_fx.prune(net, x, ratio=1.2)
    assert [group.name for group in ranked.report.groups] == ["stem", "second"]
    assert against_masked(network, ranked.plan, ranked.module, x) < 1e-5


class Words(nn.Module):
    """Tokens in; a constant that stays float32 whatever the network is in."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(9, 6), nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.table(tokens).relu())
        out: Tensor = self.head(x.flip(-1) @ torch.eye(10))
        return out


def test_what_float64_cannot_run_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BY_TORCH, "flip", ELEMENTWISE)
    network = proven(analyse(Words().eval(), tokens := torch.arange(18).reshape(2, 9) % 9), tokens)
    assert "first" not in {group.name for group in network.channels.groups}


def test_tokens_stay_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that float32 leaves undecided is looked at in float64."""
    monkeypatch.setattr(proof, "SINGLE", 0.0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    network = analyse(net, tokens := torch.arange(18).reshape(2, 9) % 9)
    assert proven(network, tokens) is network


def test_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BY_TORCH, "flip", ELEMENTWISE)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Flip(), nn.Conv2d(8, 2, 1))
    with pytest.raises(SubpruneError, match="nothing to prune: pruned and masked network differ"):
        subprune_fx.prune(net, images(), keep=0.5)


class Flip(nn.Module):
    """Channels in reverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


def test_an_undefined_output_differs() -> None:
    assert difference(torch.full((2,), torch.nan), torch.ones(2)) == float("inf")


class Causal(nn.Module):
    """Scores of which some are ruled out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu()) + self.mask
        return y


def test_scores_that_are_ruled_out_are_no_fault() -> None:
    x = torch.randn(2, 4, 6)
    network = analyse(Causal(), x)
    assert [group.name for group in proven(network, x).channels.groups] == ["first"]
    ones = torch.ones(2)
    assert difference(ones / 0, ones / 0) == 0
    assert difference(torch.tensor([1.5, -torch.inf]), torch.tensor([2.0, -torch.inf])) == 0.25
    for other in (ones, -ones / 0, 0 * ones / 0):
        assert difference(ones / 0, other) == difference(other, ones / 0) == float("inf")


def test_difference_of_shapes() -> None:
    plan, small = halved(network := analyse(Net(), images()))
    assert plan.decisions
    assert difference(small(images()), network.graph_module(images())[:, :1]) == float("inf")


def test_masked_network_has_its_own_copies_of_what_it_writes_alone() -> None:
    network = analyse(Net(), images())
    whole = dict(network.graph_module.named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in whole.items()}
    plan, _ = halved(network)
    assert all(tensor is whole[name] for name, tensor in Masked(network, plan).module.named_parameters())
    fitted = subprune_fx.prune(Net(), images(), keep=0.5).plan
    own = {name for name, tensor in Masked(network, fitted).module.named_parameters() if tensor is not whole[name]}
    assert own == fitted.values.keys() & whole.keys() != set()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.items())


def test_what_is_right_for_one_sample_more_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(network: FxNetwork) -> tuple[Plan, fx.GraphModule]:
        plan, small = halved(network)
        small.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return plan, small

    network = analyse(Net(), images())
    monkeypatch.setattr(proof, "halved", watched)
    assert proven(network, images()) is network
    assert seen == [3]


def test_of_more_samples_no_channel_is_left_out() -> None:
    wanted = torch.randn(2, 6)
    more = torch.cat([wanted, wanted[:1]])
    assert difference(fewer([more, more.t()], [wanted, wanted.t()], 2), [wanted, wanted.t()]) == 0
    assert difference(fewer(torch.cat([more, more], 1), wanted, 2), wanted) == float("inf")
