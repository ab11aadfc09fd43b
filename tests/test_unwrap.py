"""What a user may call a network: wrapped ones are unwrapped, others refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.unwrap import network_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda m: torch.compile(nn.DataParallel(m))],
)
def test_what_only_calls_a_network_is_left_out(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    small, plan, _ = subprune_fx.prune(wrap(network()), X, keep=0.5)
    assert [decision.group for decision in plan.decisions] == ["0"]
    assert small(X).shape == (16, 2)
    assert "1 group" in str(subprune_fx.explain(wrap(network()), X))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.export.export(network(), (X,)), r"ExportedProgram: is no torch.nn.Module; give its .module\(\)"),
        (lambda: network().state_dict(), "OrderedDict: is no torch.nn.Module"),
        (
            lambda: torch.jit.trace(network(), X),  # type: ignore[no-untyped-call]
            "TorchScript, whose layers cannot be changed; give the module",
        ),
        (
            lambda: nn.Sequential(network(), torch.jit.script(nn.ReLU())),
            "1: is TorchScript, which no tracer looks into; give the module",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"0\.weight: has no shape yet .*call the network once"),
        (lambda: network().to("meta"), r"0\.weight: holds no numbers .*load the weights"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
def test_what_is_no_network_is_refused(make: Callable[[], Any], said: str) -> None:
    model = make()
    with pytest.raises(SubpruneError, match=said):
        subprune_fx.prune(model, X, keep=0.5)
    with pytest.raises(SubpruneError, match=said):
        subprune_fx.explain(model, X)


def test_a_network_is_itself() -> None:
    model = network()
    assert network_of(model) is model
