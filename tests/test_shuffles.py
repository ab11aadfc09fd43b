"""Blocks that shuffle, one behind the other: no channel stays for that alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from support import against_masked
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import describe
from subprune_fx.frontends.fx_shuffles import shuffles
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse, clearest
from subprune_fx.passes.proof import halved

CHANNELS, BLOCKS = 8, 3


def viewed(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def cut(x: Tensor) -> Iterable[Tensor]:
    return (x.narrow(1, place, CHANNELS // 2) for place in (0, CHANNELS // 2))


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": viewed,
    "flatten": lambda x: torch.unflatten(x, 1, (2, -1)).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "einops": lambda x: x.reshape(-1, 2, CHANNELS // 2, *x.shape[2:]).permute(0, 2, 1, 3, 4).reshape(x.shape),
    "einsum": lambda x: torch.einsum("npc h w -> ncphw", torch.unflatten(x, 1, (2, -1))).flatten(1, 2),
    "stack": lambda x: torch.stack([x[:, : CHANNELS // 2], x[:, CHANNELS // 2 :]], 2).flatten(1, 2),
    "stack, from the end": lambda x: torch.stack(tensors=tuple(cut(x)), dim=-3).flatten(-4, -3),
    "function": lambda x: F.channel_shuffle(x, 2),
    "module": nn.ChannelShuffle(2),
}


class Stage(nn.Module):
    """ShuffleNet V2 in small: half of the channels pass, the other half are convolved."""

    def __init__(self, shuffle: Callable[[Tensor], Tensor] = viewed, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 3), nn.Linear(CHANNELS, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 3, padding=1) for _ in range(blocks))
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            left, right = x.chunk(2, 1)
            x = self.shuffle(torch.cat([left, block(right).relu()], 1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_channel_may_go(spelling: str, x: Tensor) -> None:
    stage = Stage(SPELLINGS[spelling]).eval()
    assert not describe(next(traces(stage, x)), x).channels.groups
    network = analyse(stage, x)
    single = [item.channels for item in network.channels.frozen if item.reason == "it is a single channel"]
    units = sum(group.units.size for group in network.channels.groups)
    assert units + sum(single) == CHANNELS + BLOCKS * CHANNELS // 2
    assert against_masked(network, *halved(network), x) < 1e-5  # float32 rounding; a wrong channel gives 0.1 and more
    torch.testing.assert_close(network.graph_module(x), stage(x))


def merged(x: Tensor) -> Tensor:
    """With the samples among the channels, as in the code published with ShuffleNet V2."""
    n, c, h, w = x.shape
    return x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)


HALVES: dict[str, Callable[[Tensor], Iterable[Tensor]]] = {
    "merged": lambda x: (merged(x)[0], merged(x)[1]),
    "unbind": lambda x: torch.unflatten(x, 1, (-1, 2)).unbind(2),
    "chunk": lambda x: (part.squeeze(2) for part in torch.unflatten(x, 1, (-1, 2)).chunk(2, 2)),
    "strided": lambda x: (x[:, ::2], x[:, 1::2]),
    "roll": lambda x: x.roll(3, 1).chunk(2, 1),
    "unequal": lambda x: x.roll(3, 1).tensor_split(2, 1),
}


@pytest.mark.parametrize("spelling", HALVES)
@pytest.mark.parametrize("exported", [False, True])
def test_picked_channels_may_go_too(spelling: str, x: Tensor, *, exported: bool) -> None:
    class Dealt(Stage):
        """Channels go to both halves by turns."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            for block in self.blocks:
                left, right = HALVES[spelling](x)
                x = torch.cat([left, block(right).relu()], 1)
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    stage: nn.Module = Dealt().eval()
    if exported:
        shapes = ({0: torch.export.Dim.AUTO},)
        stage = torch.export.export(stage, (x,), dynamic_shapes=shapes).module()
    network = analyse(stage, x)
    single = [item.channels for item in network.channels.frozen if item.reason == "it is a single channel"]
    units = sum(group.units.size for group in network.channels.groups)
    assert units + sum(single) == CHANNELS + BLOCKS * CHANNELS // 2
    assert against_masked(network, *halved(network), x) < 1e-5
    more = torch.cat([x, x[:1]])
    torch.testing.assert_close(network.graph_module(more), stage(more))


def test_what_has_no_channels_is_shuffled_with_what_has(x: Tensor) -> None:
    """An image beside a layer of it: a slot of the two goes with its partner, which stays."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.both, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.both(viewed(torch.cat([x, self.own(x)], 1))).relu())  # type: ignore[no-any-return]

    network = analyse(Beside().eval(), x)
    assert {group.name: group.units.size for group in network.channels.groups} == {"own": 3, "both": 4}
    assert against_masked(network, *halved(network), x) < 1e-5


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: viewed(x).flip(1, 2),
    "roll": lambda x: viewed(x).roll((1, 1), (1, 3)),
    "permute": lambda x: x.reshape(-1, 2, CHANNELS // 2, 6, 6).permute(0, 2, 1, 4, 3).reshape(x.shape),
}


@pytest.mark.parametrize("spelling", MIXED)
def test_what_moves_positions_too_is_no_list_of_channels(spelling: str, x: Tensor) -> None:
    stage = Stage(MIXED[spelling]).eval()
    torch.testing.assert_close(clearest(stage, x).graph_module(x), stage(x))


@pytest.mark.parametrize("far", [0, 6])
def test_what_is_left_of_a_roll_may_be_nothing(far: int, x: Tensor) -> None:
    """As in a file: positions are rolled by joining two ranges, of which one is empty where nothing moves."""
    stage = Stage(lambda y: viewed(torch.cat([y[:, :, :, far:], y[:, :, :, :far]], 3))).eval()
    network = analyse(stage, x)
    assert against_masked(network, *halved(network), x) < 1e-5


def among_samples(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n * c, h, w).relu()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n * c, h, w).sigmoid().view(n, c, h, w)


def test_lists_are_of_no_number_of_samples(x: Tensor) -> None:
    stage = Stage(among_samples).eval()
    network = clearest(stage, x)
    for inputs in (x[:1], torch.cat([x, x])):
        torch.testing.assert_close(network.graph_module(inputs), stage(inputs))


def test_samples_are_chunked_as_many_as_there_are(x: Tensor) -> None:
    class Pairs(Stage):
        """Two views of an image, one behind the other in the batch."""

        def forward(self, x: Tensor) -> Tensor:
            left, right = super().forward(torch.cat([x, x.flip(3)])).chunk(2)
            return left - right

    stage = Pairs().eval()
    found = subprune_fx.prune(stage, x, keep=0.5)
    torch.testing.assert_close(found.module(x[:1]), found.module(x)[:1])


def test_orders_are_those_of_the_network(x: Tensor) -> None:
    network = describe(next(traces(Stage().eval(), x)), x)
    found = list(shuffles(network))
    assert [shuffle.order.tolist() for shuffle in found] == [[0, 4, 1, 5, 2, 6, 3, 7]] * BLOCKS
    assert {shuffle.axis for shuffle in found} == {1}


def test_a_shuffle_that_keeps_nothing_stays_as_it_is_written(x: Tensor) -> None:
    """A slot of its two parts goes with its partner, and the plan fits the user's class."""
    stage = Stage(blocks=1).eval()
    network = analyse(stage, x)
    assert not any(node.op == "get_attr" for node in network.graph_module.graph.nodes)
    found = subprune_fx.prune(stage, x, keep=0.5)
    torch.testing.assert_close(subprune_fx.apply(found.plan, stage)(x), found.module(x))


def test_parameters_are_moved_too(x: Tensor) -> None:
    """And are no values whose channels have an order."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 6), nn.Linear(6, 8)
            self.places = nn.Parameter(torch.randn(8, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2) + self.places.permute(1, 2, 0).reshape(1, 4, 8)
            return x + self.head(self.inner(x).relu())  # type: ignore[no-any-return]

    network = analyse(Positions().eval(), x)
    assert [len(group.units) for group in network.channels.groups] == [6]
    assert not list(shuffles(network))


def test_a_plan_with_lists_is_for_the_graph(x: Tensor) -> None:
    stage = Stage().eval()
    found = subprune_fx.prune(stage, x, keep=0.5)
    with pytest.raises(SubpruneError, match=r"written in the code of its forward .*repeat|traced graph module"):
        subprune_fx.apply(found.plan, stage)
    torch.testing.assert_close(subprune_fx.repeat(stage, found.plan, x).module(x), found.module(x))
