"""Weights that a network computes from parameters alone are computed once, and pruned like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import against_masked
from torch import Tensor, fx, nn
from torch.nn import functional

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import describe
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved


class Standardised(nn.Conv2d):
    """Weight standardisation, as networks without BatchNorm have it."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size)
        self.gain = nn.Parameter(torch.rand(outputs) + 0.5)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = self.gain * self.weight[0].numel() ** -0.5
        weight = functional.batch_norm(rows, None, None, weight=gain, training=True, eps=1e-6).reshape_as(self.weight)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


def standardised() -> nn.Sequential:
    return nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 12, 3), nn.ReLU(), Standardised(12, 2, 3))


class Parts(nn.Module):
    """Three layers whose weights are rows of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(14, 8))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.split(self.rows, [8, 4, 2])
        hidden = functional.linear(functional.linear(x.mean((2, 3)).repeat(1, 3)[:, :8], first).relu(), second).relu()
        return functional.linear(hidden.repeat(1, 2), third)


class Twice(nn.Module):
    """One layer that is called twice computes its weight twice; it is one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = Standardised(3, 8, 1), Standardised(8, 8, 1), Standardised(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.shared(self.shared(self.first(x).relu()).relu()).relu())
        return out


@pytest.mark.parametrize(("make", "groups"), [(standardised, 2), (Parts, 2), (Twice, 1)])
@pytest.mark.parametrize("number", [0, 1])
def test_computed_weights_are_pruned(make: Callable[[], nn.Module], groups: int, number: int) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(3, 3, 9, 9)
    network = describe(list(traces(model, x))[number], x)
    assert len(network.channels.groups) == groups
    assert {item.reason for item in network.channels.frozen} == {"it is an output of the network"}
    assert against_masked(network, *halved(network), x) < 1e-5  # float32 rounding; a wrong channel gives 0.1 and more
    assert not [name for name, _ in network.graph_module.named_parameters() if name.endswith(("gain", ".weight"))]


def test_layers_keep_their_names_and_the_model_its_weights() -> None:
    torch.manual_seed(0)
    model, x = standardised().eval(), torch.randn(32, 3, 9, 9)
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = subprune_fx.prune(model, x, keep=0.5)
    assert [row.name for row in pruned.report.groups] == ["0", "2"]
    frozen = {name for name, value in pruned.module.named_parameters() if not value.requires_grad}
    assert frozen == {"0.computed_weight", "0.bias"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = subprune_fx.repeat(model, pruned.plan, x)
    torch.testing.assert_close(again.module(x), pruned.module(x))
    # Set back into the class they would be standardised once more.
    with pytest.raises(SubpruneError, match=r"0\.computed_weight is missing.*subprune_fx\.repeat"):
        subprune_fx.apply(pruned.plan, model)


class Blurred(nn.Module):
    """One kernel for as many channels as there are, as in networks without aliasing."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        kernel = self.kernel.repeat(x.shape[1], 1, 1, 1)
        return self.b(functional.conv2d(x, kernel, stride=2, groups=x.shape[1]))  # type: ignore[no-any-return]


def test_a_weight_spelled_out_over_the_channels_there_are_is_known_to_the_second_tracer() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 12, 12)
    network = analyse(Blurred().eval(), x)
    assert [(group.name, len(group.units)) for group in network.channels.groups] == [("a", 8)]
    assert against_masked(network, *halved(network), x) < 1e-5  # float32 rounding; a wrong channel gives 0.1 and more


class Read(nn.Module):
    """Something else depends on what the weight is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.linear(x, self.a.weight * self.scale).relu()
        return self.b(hidden) + self.scale * 2  # type: ignore[no-any-return]


class Random(nn.Module):
    """A weight that is another one at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(functional.linear(x, functional.dropout(self.a.weight, training=True)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Read, Random])
def test_what_is_not_a_weight_of_its_own_stays_computed(make: Callable[[], nn.Module]) -> None:
    from subprune_fx.frontends.tracing import functional as prepared  # noqa: PLC0415 - torch's has this name here

    torch.manual_seed(0)
    graph = prepared(fx.symbolic_trace(make()))
    assert "a.weight" in dict(graph.named_parameters())
    assert not [name for name, _ in graph.named_parameters() if "computed" in name]
