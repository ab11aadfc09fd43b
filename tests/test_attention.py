"""Attention: heads are units in every spelling, and dropping one equals masking it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from numpy.typing import NDArray
from support import against_masked
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.tensors import parameter
from subprune_fx.frontends.tracing import functional, traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved
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


class Grouped(nn.Module):
    """Grouped queries: every key head serves two query heads, in one of the spellings in use."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.q, self.o = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.k, self.v = nn.Linear(DIM, DIM // 2), nn.Linear(DIM, DIM // 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, HEADS, HEAD).transpose(1, 2)
        k, v = (layer(x).view(b, n, HEADS // 2, HEAD).transpose(1, 2) for layer in (self.k, self.v))
        if self.spelling == "repeat":
            k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        if self.spelling == "expand":
            k, v = (part[:, :, None].expand(b, HEADS // 2, 2, n, HEAD).reshape(b, HEADS, n, HEAD) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.spelling == "enable")
        z: Tensor = self.o(y.transpose(1, 2).reshape(b, n, -1))
        return z


class Rotary(nn.Module):
    """Rotary embedding of q and k, which are normalised per head with a scale common to all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.norm = nn.RMSNorm(HEAD)
        self.cos: Tensor
        self.register_buffer("cos", torch.rand(TOKENS, HEAD))

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)[0], x.chunk(2, -1)[1]
        return x * self.cos + torch.cat((-second, first), -1) * (1 - self.cos)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(self.norm(q)), self.turned(self.norm(k)), v)
        z: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return z


class Window(nn.Module):
    """Swin's: windows of a rolled sequence, a table of position biases, a mask of windows, a scale per head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.table, self.scale = nn.Parameter(torch.randn(5, HEADS)), nn.Parameter(torch.rand(HEADS, 1, 1))
        self.index: Tensor
        self.mask: Tensor
        self.register_buffer("index", (torch.arange(3)[:, None] - torch.arange(3) + 2).flatten())
        self.register_buffer("mask", torch.randn(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = torch.roll(x, -1, 1).reshape(b * 2, 3, DIM)
        q, k, v = self.qkv(x).reshape(b * 2, 3, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale
        scores = scores + self.table[self.index].view(3, 3, -1).permute(2, 0, 1).unsqueeze(0)
        scores = scores.view(b, 2, HEADS, 3, 3) + self.mask[:, None]
        y = scores.view(-1, HEADS, 3, 3).softmax(-1) @ v
        z: Tensor = torch.roll(self.proj(y.transpose(1, 2).reshape(b * 2, 3, DIM)).view(b, TOKENS, DIM), 1, 1)
        return z


class Multihead(nn.Module):
    """torch's own module, opaque to symbolic tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
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
    "grouped-repeat": lambda: Grouped("repeat"),
    "grouped-expand": lambda: Grouped("expand"),
    "grouped-enable": lambda: Grouped("enable"),
    "rotary": Rotary,
    "window": Window,
    "multihead": Multihead,
}
UNITS = dict.fromkeys(PATTERNS, HEADS) | dict.fromkeys((name for name in PATTERNS if "grouped" in name), HEADS // 2)
CASES = [
    (pattern, tracer)
    for pattern in PATTERNS
    for tracer in ("symbolic", "exported")
    if (pattern, tracer) != ("multihead", "symbolic")
]


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


@pytest.mark.parametrize(("pattern", "tracer"), CASES)
def test_heads_are_units(pattern: str, tracer: str) -> None:
    torch.manual_seed(0)
    net = network(Block(PATTERNS[pattern]()), tracer, torch.randn(2, TOKENS, 5))
    assert {group.units.size for group in net.channels.groups} == {DIM, UNITS[pattern], 16}
    assert [item.reason for item in net.channels.frozen] == ["it is an output of the network"]


@pytest.mark.parametrize(("pattern", "tracer"), CASES)
def test_pruned_equals_masked(pattern: str, tracer: str) -> None:
    torch.manual_seed(0)
    net = network(Block(PATTERNS[pattern]()).double(), tracer, torch.randn(2, TOKENS, 5).double())
    alive = half(net)
    x = torch.randn(5, TOKENS, 5).double()
    small = pruned(net, alive)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net.graph_module, small))
    assert before / after > 1.8
    torch.testing.assert_close(small(x), masked(net, alive)(x), rtol=1e-9, atol=1e-9)


def test_golden_graph_of_an_attention() -> None:
    """Who makes, follows and reads each group."""
    net = network(Block(Window()), "symbolic", torch.randn(2, TOKENS, 5))
    found = {group.name: (group.producers, group.followers, group.consumers) for group in net.channels.groups}
    assert found == {
        "stem": (("stem", "attention.proj", "down"), (), ("attention_qkv", "up", "head")),
        "attention.qkv": (("attention.qkv",), ("attention.table", "attention.scale"), ("attention_proj",)),
        "up": (("up",), (), ("down",)),
    }


def test_opaque_attention_is_exported() -> None:
    """Where symbolic tracing leaves an op unknown, torch.export takes it apart."""
    net = analyse(Block(Multihead()), torch.randn(2, TOKENS, 5))
    assert sorted(group.units.size for group in net.channels.groups) == [HEADS, 16, DIM]


def test_single_head_keeps_queries_and_keys() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
            y: Tensor = self.o(weights @ self.v(x))
            return y

    net = network(Network(), "symbolic", torch.randn(2, TOKENS, 5))
    assert [(group.name, group.units.size) for group in net.channels.groups] == [("v", 8)]
    reason = "matmul sums over it, or all of the result depends on it"
    assert {item.name: item.reason for item in net.channels.frozen if item.name != "o"} == {"q": reason, "k": reason}


class Positions(nn.Module):
    """Scores from queries and what is looked up for a distance, the same for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.q, self.v, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.table = nn.Embedding(9, 4)
        self.register_buffer("apart", (torch.arange(5)[:, None] - torch.arange(5)) + 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, v = (layer(x).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.q, self.v))
        scores = torch.einsum("bhld,lrd->bhlr", q, self.table(self.apart)).softmax(-1)
        y: Tensor = self.last(x + (scores @ v).transpose(1, 2).flatten(2))
        return y


@pytest.mark.parametrize("tracer", TRACERS)
def test_positions_that_all_heads_have_in_common_stay(tracer: str) -> None:
    torch.manual_seed(0)
    net = network(Positions().eval(), tracer, torch.randn(2, 5, 6))
    assert [len(group.units) for group in net.channels.groups] == [3]  # the stream's too
    (why,) = {item.reason for item in net.channels.frozen if item.name == "table"}
    assert why.endswith("einsum reads it for every head")


class Encoded(nn.Module):
    """Scores from queries and from encodings of positions, of which a matrix makes heads (Conformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.q, self.v, self.o = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.places, self.encode = nn.Parameter(torch.randn(1, 9, 8)), nn.Parameter(torch.randn(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, v = (layer(x).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.q, self.v))
        k = (self.places[:, :5] @ self.encode).view(1, 5, -1, 4).permute(0, 2, 3, 1)
        y: Tensor = self.last(x + self.o(((q @ k).softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return y


@pytest.mark.parametrize("tracer", TRACERS)
def test_heads_of_encoded_positions_go_with_those_of_queries(tracer: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    net = network(Encoded().eval(), tracer, x)
    assert sorted(len(group.units) for group in net.channels.groups) == [3, 12]
    assert against_masked(net, *halved(net), x) < 1e-5


class Apart(nn.Module):
    """Scores picked by distance, heads among the samples: the index is spelled out for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.register_buffer("apart", (torch.arange(5)[:, None] - torch.arange(5)).abs())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (
            layer(x).view(len(x), 5, 3, 4).transpose(1, 2).reshape(-1, 5, 4) for layer in (self.q, self.k, self.v)
        )
        apart = self.get_buffer("apart")
        places = apart[None].expand(3 * len(x), 5, 5)
        made = (q @ k.mT + (q @ k.mT).gather(-1, places)).softmax(-1) @ v
        y: Tensor = self.last(x + self.o(made.view(-1, 3, 5, 4).transpose(1, 2).reshape(-1, 5, 12)))
        return y


def test_an_index_for_every_head_is_as_wide_as_the_heads() -> None:
    torch.manual_seed(0)
    model, x = Apart().eval(), torch.randn(4, 5, 6)
    net = describe(list(traces(model, x))[-1], x)
    assert [len(group.units) for group in net.channels.groups] == [12, 3]
    plan, small = halved(net)
    assert against_masked(net, plan, small, x) < 1e-5  # float32 rounding; a wrong head gives 0.1 and more
    assert len(small(torch.randn(7, 5, 6))) == 7


@pytest.mark.parametrize("mask", [None, nn.Transformer.generate_square_subsequent_mask(TOKENS)])
def test_torchs_own_layers_take_masks(mask: Tensor | None) -> None:
    """Which one of them is, they look at themselves, and which samples have padding, the data says."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(30, DIM), nn.Linear(DIM, 30)
            layer = nn.TransformerEncoderLayer(DIM, HEADS, 40, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, tokens: Tensor) -> Tensor:
            padding = torch.zeros(tokens.shape).masked_fill(tokens == 0, -torch.inf)
            y: Tensor = self.head(self.encoder(self.embedding(tokens), mask=mask, src_key_padding_mask=padding))
            return y

    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (3, TOKENS))
    network = analyse(Masked().eval(), tokens)
    assert sorted(len(group.units) for group in network.channels.groups) == [HEADS, DIM, 40]
    assert against_masked(network, *halved(network), tokens) < 1e-5


def test_library_prunes_integers_to_a_language_model() -> None:
    """Tokens in, logits out, embedding and output layer tied: pruned alike, neither is refitted."""

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30, DIM)
            self.position = nn.Parameter(torch.randn(1, TOKENS, DIM))
            self.block, self.norm = Block(Fused("chunk", spelled_out=False)), nn.LayerNorm(DIM)
            self.block.stem = nn.Linear(DIM, DIM)
            self.block.head = nn.Linear(DIM, DIM)
            self.head = nn.Linear(DIM, 30, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens) + self.position
            y: Tensor = self.head(self.norm(x + self.block.attention(x)))
            return y

    model = Language().eval()
    tokens = torch.randint(0, 30, (64, TOKENS))
    small, plan, report = subprune_fx.prune(model, tokens, ratio=1.5)
    assert report.before.parameters / report.after.parameters >= 1.5
    assert "embedding.weight" not in plan.values
    table = small.get_parameter("embedding.weight")
    assert small.get_parameter("head.weight") is table
    kept = next(decision.kept for decision in plan.decisions if decision.group == "embedding")
    torch.testing.assert_close(table, model.embedding.weight[:, list(kept)])
    assert small(tokens[:3]).shape == (3, TOKENS, 30)
