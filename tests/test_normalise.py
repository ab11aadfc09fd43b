"""Normalisations: their parameters follow their channels, and statistics are taken over the channels that are left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import against_masked
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.tensors import parameter
from subprune_fx.frontends.tracing import functional
from subprune_fx.graph.labels import vector
from subprune_fx.passes.proof import halved
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch

DIM = 12


class HandRMS(nn.Module):
    """As transformers spells it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        return y


class HandLayer(nn.Module):
    """Mean and variance by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(DIM)), nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return off / (off.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class Unit(nn.Module):
    """F.normalize over channels, as torch spells it out."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class Functional(nn.Module):
    """F.layer_norm with a baked shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (DIM,), self.weight)


class Residual(nn.Module):
    """A residual stream that is normalised before every layer that reads it."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(5, DIM), make(), make()
        self.up, self.down, self.head = nn.Linear(DIM, 8), nn.Linear(8, DIM), nn.Linear(DIM, 3)

    def embedded(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        x = x + self.down(self.up(self.first(x)).relu())
        y: Tensor = self.head(self.second(x))
        return y


class Tokens(Residual):
    """The stream is of tokens that layers of their own have made, as of the columns of a table."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__(make)
        self.stems = nn.ModuleList(nn.Linear(5, DIM) for _ in range(4))

    def embedded(self, x: Tensor) -> Tensor:
        return torch.stack([stem(x[:, k]) for k, stem in enumerate(self.stems)], 1)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(DIM),
    "layer-plain": lambda: nn.LayerNorm(DIM, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(DIM, eps=1e-5),
    "functional": Functional,
    "hand-rms": HandRMS,
    "hand-layer": HandLayer,
    "unit": Unit,
}


def network(module: nn.Module, example: Tensor, *, export: bool = False) -> FxNetwork:
    module = copy.deepcopy(module).double().eval()
    for value in module.parameters():
        value.data.add_(torch.randn_like(value))
    if export:
        graph: Any = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    else:
        graph = fx.symbolic_trace(module)
    return describe(functional(graph), example)


def half(net: FxNetwork) -> NDArray[np.bool_]:
    rng = np.random.default_rng(0)
    alive = np.ones(net.channels.prunable.size, dtype=bool)
    for group in net.channels.groups:
        alive[rng.permutation(group.units)[: group.units.size // 2]] = False
    return alive


def pruned(net: FxNetwork, alive: NDArray[np.bool_]) -> fx.GraphModule:
    scratch = Scratch(net)
    scratch.shrink(alive)
    return apply(scratch.plan(()), net.graph_module)


class Reference(nn.Module):
    """`Residual` with its full parameters, computed on the kept channels by indexing in its forward."""

    def __init__(self, net: FxNetwork, alive: NDArray[np.bool_], norm: Callable[[Tensor, Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.full, self.norm = net.graph_module, norm
        unit = net.channels.unit
        weights = [name for name in net.channels.axes if name.startswith("stem") and name.endswith(".weight")]
        self.stems = [name.removesuffix(".weight") for name in weights]
        self.stream = torch.from_numpy(np.flatnonzero(alive[unit[net.channels.axes[f"{self.stems[0]}.weight"][0]]]))
        self.hidden = torch.from_numpy(np.flatnonzero(alive[unit[net.channels.axes["up.weight"][0]]]))

    def linear(self, name: str, x: Tensor, inputs: Tensor | slice, outputs: Tensor | slice) -> Tensor:
        weight, bias = (parameter(self.full, f"{name}.{part}") for part in ("weight", "bias"))
        return x @ weight[outputs][:, inputs].t() + bias[outputs]

    def forward(self, x: Tensor) -> Tensor:
        whole, s, h = slice(None), self.stream, self.hidden
        made = [self.linear(name, x, whole, s) for name in self.stems]
        x = made[0] if len(made) == 1 else torch.stack([token[:, k] for k, token in enumerate(made)], 1)
        x = x + self.linear("down", self.linear("up", self.norm(x, "first", s), s, h).relu(), h, s)
        return self.linear("head", self.norm(x, "second", s), s, whole)


def by_hand(kind: str, net: FxNetwork) -> Callable[[Tensor, Any, Tensor], Tensor]:
    """The normalisation over the channels that are left."""
    state = dict(net.graph_module.named_parameters())

    def norm(x: Tensor, name: str, kept: Tensor) -> Tensor:
        weight = state[f"{name}.weight"][kept] if f"{name}.weight" in state else torch.ones(len(kept))
        bias = state[f"{name}.bias"][kept] if f"{name}.bias" in state else torch.zeros(len(kept))
        if kind == "unit":
            return x / x.square().sum(-1, keepdim=True).sqrt()
        off = x if "rms" in kind else x - x.sum(-1, keepdim=True) / x.shape[-1]
        return off / (off.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt() * weight + bias

    return norm


@pytest.mark.parametrize("export", [False, True], ids=["symbolic", "exported"])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("stream", [Residual, Tokens])
def test_statistics_over_what_is_left(stream: type[Residual], kind: str, *, export: bool) -> None:
    net = network(stream(NORMS[kind]), torch.randn(2, 4, 5).double(), export=export)
    assert sorted(group.units.size for group in net.channels.groups) == [8, DIM]
    assert [group.normalised for group in net.channels.groups if group.units.size == DIM] == [True]
    assert [item.reason for item in net.channels.frozen] == ["it is an output of the network"]
    alive, x = half(net), torch.randn(6, 4, 5).double()
    small = pruned(net, alive)
    wanted = Reference(net, alive, by_hand(kind, net))(x)
    torch.testing.assert_close(small(x), wanted, rtol=1e-9, atol=1e-9)


class Spatial(nn.Module):
    """A normalisation between two convolutions."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.norm(self.first(x)).relu())
        return y


SPATIAL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "group-norm": (lambda: nn.GroupNorm(4, 8), 4),
    "instance-like": (lambda: nn.GroupNorm(8, 8), 8),
    "positions": (lambda: nn.LayerNorm((4, 4)), 8),
    "last-position": (lambda: nn.LayerNorm(4), 8),
}


@pytest.mark.parametrize("kind", SPATIAL)
def test_exact_where_no_statistic_mixes_units(kind: str) -> None:
    """Whole groups of a GroupNorm are units; a LayerNorm over positions leaves channels alone."""
    make, units = SPATIAL[kind]
    net = network(Spatial(make()), torch.randn(2, 3, 4, 4).double())
    (group,) = net.channels.groups
    assert (group.units.size, group.normalised) == (units, False)
    alive, x = half(net), torch.randn(5, 3, 4, 4).double()
    masked = copy.deepcopy(net.graph_module)
    gone = ~alive[net.channels.unit[net.channels.contractions["second"].labels]]
    parameter(masked, "second.weight")[:, torch.from_numpy(gone)] = 0
    torch.testing.assert_close(pruned(net, alive)(x), masked(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm((8, 4, 4)), lambda: nn.GroupNorm(1, 8)], ids=["layer", "group"])
def test_over_channels_and_positions(make: Callable[[], nn.Module]) -> None:
    net = network(Spatial(make()), torch.randn(2, 3, 4, 4).double())
    (group,) = net.channels.groups
    assert (group.units.size, group.normalised) == (8, True)
    alive, x = half(net), torch.randn(5, 3, 4, 4).double()
    kept = torch.from_numpy(np.flatnonzero(alive[net.channels.unit[net.channels.contractions["second"].labels]]))
    full = net.graph_module
    y = full.get_submodule("first")(x)[:, kept]
    y = (y - y.mean((1, 2, 3), keepdim=True)) / (y.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    shape = (-1, 4, 4) if parameter(full, "norm.weight").ndim == 3 else (-1, 1, 1)
    weight, bias = (parameter(full, f"norm.{part}")[kept].reshape(shape) for part in ("weight", "bias"))
    wanted = nn.functional.conv2d(
        (y * weight + bias).relu(), parameter(full, "second.weight")[:, kept], parameter(full, "second.bias")
    )
    torch.testing.assert_close(pruned(net, alive)(x), wanted, rtol=1e-9, atol=1e-9)


class Misused(nn.Module):
    """A mean over channels that goes elsewhere than back to them."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.first, self.other = nn.Linear(5, 8), nn.Linear(5, 8)
        self.last, self.rest = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.other(x)
        mean = a.mean(-1, keepdim=True)
        y: Tensor = self.last(a)
        if self.use == "other":
            y = y + self.rest(b * mean)
        elif self.use == "output":
            y = y + mean
        else:
            y = y + self.rest(torch.cat([mean] * 8, -1))
        return y


@pytest.mark.parametrize("use", ["other", "output", "joined"])
def test_statistics_used_otherwise_freeze(use: str) -> None:
    net = network(Misused(use), torch.randn(2, 5).double())
    assert all("first" not in group.producers for group in net.channels.groups)
    assert any(item.name == "first" and "statistic" in item.reason for item in net.channels.frozen)


def test_labels_of_a_norm_follow() -> None:
    net = network(Residual(NORMS["layer"]), torch.randn(2, 4, 5).double())
    labels = vector(net.channels.values["first"], -1)
    np.testing.assert_array_equal(net.channels.unit[net.channels.elements["first.weight"]], net.channels.unit[labels])


@pytest.mark.parametrize("export", [False, True])
def test_a_table_that_is_normalised_has_channels(*, export: bool) -> None:
    """Relative positions, as in DeBERTa: rows are positions, whatever is read at all of them."""

    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Parameter(torch.randn(7, DIM)), nn.LayerNorm(DIM)
            self.stem, self.mix, self.head = nn.Linear(5, DIM), nn.Linear(DIM, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.mix(self.stem(x)).relu() + self.mix(self.norm(self.table)))
            return y

    example = torch.randn(4, 7, 5, dtype=torch.float64)
    net = network(Relative(), example, export=export)
    assert {group.name: group.units.size for group in net.channels.groups} == {"stem": DIM, "mix": 8}
    plan, small = halved(net)
    assert small.get_parameter("table").shape == (7, DIM // 2)
    assert against_masked(net, plan, small, example) < 1e-12  # float64 rounding


class Whole(nn.Module):
    """Of all channels and tokens of a sample, at once or one after the other."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.stem, self.head, self.at_once = nn.Linear(5, DIM), nn.Linear(DIM, 3), at_once

    def mean(self, x: Tensor) -> Tensor:
        return x.mean((1, 2), keepdim=True) if self.at_once else x.mean(2, keepdim=True).mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        off = self.stem(x) - self.mean(self.stem(x))
        y: Tensor = self.head(off / (self.mean(off.pow(2)) + 1e-5).sqrt())
        return y


def test_a_mean_of_means_is_a_statistic_of_the_same_channels() -> None:
    x, whole, outputs = torch.randn(3, 4, 5, dtype=torch.float64), Whole(at_once=True), []
    for at_once in (True, False):
        whole.at_once = at_once
        torch.manual_seed(0)
        net = network(whole, x)
        assert [len(group.units) for group in net.channels.groups] == [DIM]
        outputs.append(pruned(net, half(net))(x))
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
