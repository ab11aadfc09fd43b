"""Attention: heads are units in every spelling, and dropping one equals masking it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.tracing import functional
from subprune_fx.passes.calibrate import parameter
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch

DIM, HEADS, TOKENS = 24, 4, 6
HEAD = DIM // HEADS


class Fused(nn.Module):
    """timm's attention: one layer for q, k and v, split by `split`."""

    def __init__(self, split: str, *, spelled_out: bool) -> None:
        super().__init__()
        self.split, self.spelled_out = split, spelled_out
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.split == "unbind":
            q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = self.qkv(x).chunk(3, -1) if self.split == "chunk" else self.qkv(x).split(DIM, -1)
            q, k, v = parts
            q, k, v = (part.view(b, n, HEADS, -1).transpose(1, 2) for part in (q, k, v))
        if self.spelled_out:
            y = ((q * HEAD**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        z: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return z


class Separate(nn.Module):
    """Three layers; scores by einsum, a causal mask, a scale per head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1))
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, HEAD)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        weights = scores.masked_fill(~self.mask, -1e9).softmax(-1)
        y: Tensor = self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
        return y


class Block(nn.Module):
    """A network without normalisation around an attention, so that pruning is exact masking."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(5, DIM), attention
        self.up, self.down, self.head = nn.Linear(DIM, 16), nn.Linear(16, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x)
        x = x + self.down(F.gelu(self.up(x)))
        y: Tensor = self.head(x).mean(1)
        return y


PATTERNS: dict[str, Callable[[], nn.Module]] = {
    "fused-unbind-matmul": lambda: Fused("unbind", spelled_out=True),
    "fused-unbind-sdpa": lambda: Fused("unbind", spelled_out=False),
    "fused-chunk-sdpa": lambda: Fused("chunk", spelled_out=False),
    "fused-split-matmul": lambda: Fused("split", spelled_out=True),
    "separate-einsum": Separate,
}


def symbolic(module: nn.Module, _example: Tensor) -> fx.GraphModule:
    return functional(fx.symbolic_trace(copy.deepcopy(module)))


def exported(module: nn.Module, example: Tensor) -> fx.GraphModule:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return functional(graph)


TRACERS = {"symbolic": symbolic, "exported": exported}


def network(module: nn.Module, tracer: str, example: Tensor) -> FxNetwork:
    return describe(TRACERS[tracer](module.eval(), example), example)


def half(net: FxNetwork, seed: int = 0) -> NDArray[np.bool_]:
    """Every group loses half of its units, which ones at random."""
    rng = np.random.default_rng(seed)
    alive = np.ones(net.channels.prunable.size, dtype=bool)
    for group in net.channels.groups:
        alive[rng.permutation(group.units)[: group.units.size // 2]] = False
    return alive


def pruned(net: FxNetwork, alive: NDArray[np.bool_]) -> fx.GraphModule:
    scratch = Scratch(net)
    scratch.shrink(alive)
    return apply(scratch.plan(()), net.graph_module)


def masked(net: FxNetwork, alive: NDArray[np.bool_]) -> fx.GraphModule:
    """The original with zeros wherever a consumer reads a dropped channel."""
    module = copy.deepcopy(net.graph_module)
    for name, consumer in net.channels.contractions.items():
        weight = parameter(module, consumer.weight)
        gone = ~alive[net.channels.unit[consumer.labels]]
        matrix = net.readers[name].matrix(weight).clone()
        matrix[:, gone] = 0
        weight.copy_(net.readers[name].weight(matrix, weight))
    return module


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_heads_are_units(pattern: str, tracer: str) -> None:
    torch.manual_seed(0)
    net = network(Block(PATTERNS[pattern]()), tracer, torch.randn(2, TOKENS, 5))
    assert {group.units.size for group in net.channels.groups} == {DIM, HEADS, 16}
    assert [item.reason for item in net.channels.frozen] == ["it is an output of the network"]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruned_equals_masked(pattern: str, tracer: str) -> None:
    torch.manual_seed(0)
    net = network(Block(PATTERNS[pattern]()).double(), tracer, torch.randn(2, TOKENS, 5).double())
    alive = half(net)
    x = torch.randn(5, TOKENS, 5).double()
    small = pruned(net, alive)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net.graph_module, small))
    assert before / after > 1.8
    torch.testing.assert_close(small(x), masked(net, alive)(x), rtol=1e-9, atol=1e-9)
