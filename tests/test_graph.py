"""Dependency graphs of small networks, word for word: what is coupled, what stays, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import describe
from subprune_fx.frontends.fx_modes import ExportedModule
from subprune_fx.frontends.tracing import traces

GOLDEN: dict[str, tuple[Callable[[], nn.Module], str]] = {}
IMAGE = (2, 3, 8, 8)


def golden(text: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """The dependency graph that a network must have."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        GOLDEN[make.__name__] = (make, textwrap.dedent(text).strip())
        return make

    return register


def nearest(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Its graph with the names of its code: torch.export's only where it is the only one."""
    graphs = traces(module, example)
    first = next(graphs)
    return next(graphs, first) if isinstance(first, ExportedModule) else first


def written(module: nn.Module) -> str:
    """A dependency graph as text."""
    example = torch.randn(IMAGE)
    channels = describe(nearest(module, example), example).channels
    lines = []
    for group in channels.groups:
        follow = f" with {', '.join(group.followers)}" if group.followers else ""
        makers, readers = ", ".join(group.producers), ", ".join(group.consumers)
        lines.append(f"{group.name}: {group.units.size} of {makers}{follow} -> {readers}")
    lines += [f"frozen {item.name}: {item.channels}, {item.reason}" for item in channels.frozen]
    return "\n".join(lines)


class Net(nn.Module):
    """Layers by name and a forward function."""

    def __init__(self, forward: Callable[[Net, Tensor], object], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.path = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> object:
        return self.path(self, x)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def conv(inputs: int, outputs: int, size: int = 3, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)  # type: ignore[arg-type]


@golden("""
    0: 4 of 0 -> _3
    3: 6 of 3 -> _5
    frozen 5: 2, it is an output of the network
    """)
def chain() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 6), nn.GELU(), conv(6, 2))


@golden("""
    0: 4 of 0 -> _3
    3: 5 of 3 -> _5
    frozen 5: 2, it is an output of the network
    """)
def flatten() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))


@golden("""
    0: 4 of 0 with 1, 2 -> _3
    frozen 3: 2, it is an output of the network
    """)
def batch_norm() -> nn.Module:
    return nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.PReLU(4), conv(4, 2))


@golden("""
    stem: 4 of stem, b, d -> a, c, last
    a: 6 of a with norm -> b
    c: 5 of c -> d
    frozen last: 2, it is an output of the network
    """)
def residual() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x).relu()
        x = F.relu(x + net.b(F.relu(net.norm(net.a(x)))))
        x = F.relu(net.d(net.c(x).relu()) + x)
        return net.last(x.mean((2, 3)))

    return Net(
        forward,
        stem=conv(3, 4),
        a=conv(4, 6),
        norm=nn.BatchNorm2d(6),
        b=conv(6, 4),
        c=conv(4, 5),
        d=conv(5, 4),
        last=nn.Linear(4, 2),
    )


@golden("""
    stem: 4 of stem, b -> a, last
    a: 6 of a -> b
    b: 4 of b with pad -> last
    frozen last: 2, it is an output of the network
    """)
def option_a() -> nn.Module:
    """The paper's CIFAR ResNets: the shortcut halves the image and pads the channels with zeros."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x).relu()
        y = net.b(net.a(x).relu())
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return net.last(x.mean((2, 3)))

    return Net(forward, stem=conv(3, 4), a=conv(4, 6, stride=2), b=conv(6, 8), last=nn.Linear(8, 2))


@golden("""
    stem: 4 of stem with na, nb -> a, b, last
    a: 2 of a with nb -> b, last
    b: 2 of b -> last
    frozen last: 2, it is an output of the network
    """)
def dense() -> nn.Module:
    """DenseNet: every layer reads all before it, through a norm of its own."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        x = torch.cat([x, net.a(net.na(x).relu())], 1)
        x = torch.cat([x, net.b(net.nb(x).relu())], 1)
        return net.last(x.mean((2, 3)))

    return Net(
        forward,
        stem=conv(3, 4),
        na=nn.BatchNorm2d(4),
        a=conv(4, 2),
        nb=nn.BatchNorm2d(6),
        b=conv(6, 2),
        last=nn.Linear(8, 2),
    )


@golden("""
    a: 4 of a -> b
    frozen b: 2, it is an output of the network
    """)
def input_concat() -> nn.Module:
    """The image joins the features: its channels stay."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(torch.cat([x, net.a(x)], 1))

    return Net(forward, a=conv(3, 4), b=conv(7, 2))


@golden("""
    a: 4 of a -> b
    frozen b: 2, it is an output of the network
    """)
def shuffle() -> nn.Module:
    """A channel shuffle of two groups, written as views: a slot goes with its partner in the other group."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.a(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return net.b(x)

    return Net(forward, a=conv(3, 8), b=conv(8, 2))


@golden("""
    a: 3 of a -> b
    a#2: 5 of a -> c
    b: 4 of b -> last
    c: 4 of c -> last
    frozen last: 2, it is an output of the network
    """)
def split() -> nn.Module:
    """Parts with different readers are different decisions: each keeps at least one channel."""

    def forward(net: Net, x: Tensor) -> Any:
        left, right = torch.split(net.a(x).relu(), [3, 5], 1)
        return net.last(torch.cat([net.b(left), net.c(right)], 1))

    return Net(forward, a=conv(3, 8), b=conv(3, 4), c=conv(5, 4), last=conv(8, 2))


@golden("""
    a: 4 of a -> b
    frozen b: 2, it is an output of the network
    """)
def gated_halves() -> nn.Module:
    """Equal halves, one gates the other: a channel goes with its gate."""

    def forward(net: Net, x: Tensor) -> Any:
        value, gate = net.a(x).chunk(2, 1)
        return net.b(value * gate.sigmoid())

    return Net(forward, a=conv(3, 8), b=conv(4, 2))


@golden("""
    a: 6 of a, up -> down, last
    down: 3 of down -> up
    frozen last: 2, it is an output of the network
    """)
def squeeze_excite() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Any:
        x = net.a(x).relu()
        scale = net.up(net.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return net.last(x * scale)

    return Net(forward, a=conv(3, 6), down=conv(6, 3, 1), up=conv(3, 6, 1), last=conv(6, 2))


@golden("""
    0: 6 of 0 with 2, 3 -> _5
    frozen 5: 2, it is an output of the network
    """)
def depthwise() -> nn.Module:
    return nn.Sequential(
        conv(3, 6, 1), nn.ReLU6(), conv(6, 6, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(), conv(6, 2, 1)
    )


@golden("""
    0: 4 of 0 with 1 -> _3
    frozen 3: 2, it is an output of the network
    """)
def depth_multiplier() -> nn.Module:
    """Two outputs a channel: they live and die with it."""
    return nn.Sequential(conv(3, 4, 1), conv(4, 8, groups=4), nn.ReLU(), conv(8, 2, 1))


@golden("""
    0: 2 of 0 -> _2
    2: 3 of 2 -> _4
    frozen 4: 2, it is an output of the network
    """)
def grouped() -> nn.Module:
    """The same slot of every group goes together, before and after."""
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 2))


@golden("""
    0: 4 of 0 -> _1
    1: 6 of 1 with 2 -> _4
    frozen 4: 2, it is an output of the network
    """)
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(3, 4), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)
    )


@fx.wrap
def mystery(x: Tensor) -> Tensor:
    """Nobody knows what it does to channels."""
    return x.flip(1)


@golden("""
    b: 6 of b -> c
    frozen a: 4, mystery is not in the op table
    frozen c: 2, it is an output of the network
    """)
def unknown() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Any:
        return net.c(net.b(mystery(net.a(x))).relu())

    return Net(forward, a=conv(3, 4), b=conv(4, 6), c=conv(6, 2))


class ReLU(nn.Module):
    """A class of one's own that happens to be called like a stock one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@golden("""
    frozen 0: 4, nn.ReLU is not in the op table
    frozen 2: 2, it is an output of the network
    """)
def namesake() -> nn.Module:
    """A leaf module with a stock name is not the stock module."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, ReLU) or super().is_leaf_module(m, module_qualified_name)

    root = nn.Sequential(conv(3, 4), ReLU(), conv(4, 2))
    return fx.GraphModule(root, Tracer().trace(root))


@golden("""
    frozen a: 4, nn.Conv2d reads a statistic over them
    frozen b: 2, it is an output of the network
    """)
def reduced() -> nn.Module:
    """The mean over channels needs them all."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.a(x).relu()
        return net.b(x.mean(1, keepdim=True))

    return Net(forward, a=conv(3, 4), b=conv(1, 2))


@golden("""
    frozen a: 8, nn.Conv2d reads a statistic over them
    frozen b: 2, it is an output of the network
    """)
def normed() -> nn.Module:
    """So does a norm over channels, however its dimension is spelt."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(net.a(x).norm(2, 1).unsqueeze(1))

    return Net(forward, a=conv(3, 8), b=conv(1, 2))  # 8 channels of 8 x 8: a wrong dimension would fit


@golden("""
    stem: 6 of stem -> a, b
    frozen a: 2, it is an output of the network
    frozen b: 3, it is an output of the network
    """)
def two_outputs() -> nn.Module:
    """Both heads stay; what they share does not have to."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x).relu()
        return {"map": net.a(x), "class": net.b(x.mean((2, 3)))}

    return Net(forward, stem=conv(3, 6), a=conv(6, 2), b=nn.Linear(6, 3))


@golden("""
    frozen a: 4, it is an output of the network
    frozen b: 2, it is an output of the network
    """)
def features_as_output() -> nn.Module:
    """What leaves the network stays."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.a(x).relu()
        return x, net.b(x)

    return Net(forward, a=conv(3, 4), b=conv(4, 2))


@golden("""
    stem: 4 of stem, twice -> twice, twice_1, last
    frozen last: 2, it is an output of the network
    """)
def shared_layer() -> nn.Module:
    """One layer at two places: its inputs are coupled, and so are its outputs."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x).relu()
        x = net.twice(net.twice(x).relu()).relu()
        return net.last(x)

    return Net(forward, stem=conv(3, 4), twice=conv(4, 4), last=conv(4, 2))


@golden("""
    stem: 4 of stem -> a, b
    a: 6 of a, b -> last
    frozen last: 2, it is an output of the network
    """)
def tied_weights() -> nn.Module:
    """Two layers with one weight tensor but biases of their own."""

    def forward(net: Net, x: Tensor) -> Any:
        x = net.stem(x).relu()
        return net.last(torch.cat([net.a(x), net.b(x)], 1))

    net = Net(forward, stem=conv(3, 4), a=conv(4, 6), b=conv(4, 6), last=conv(12, 2))
    net.b.weight = net.a.weight
    return net


@golden("""
    a: 4 of a with scale -> b
    frozen b: 2, it is an output of the network
    """)
def scaled() -> nn.Module:
    """A parameter per channel follows; a single number does not."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(net.a(x) * net.scale.view(1, -1, 1, 1) * net.whole)

    return Net(
        forward, a=conv(3, 4), b=conv(4, 2), scale=nn.Parameter(torch.ones(4)), whole=nn.Parameter(torch.ones(1))
    )


@golden("""
    a: 4 of a -> c
    b: 3 of b -> c
    frozen c: 2, it is an output of the network
    """)
def by_keyword() -> nn.Module:
    """Arguments by name are arguments all the same."""

    def forward(net: Net, x: Tensor) -> Any:
        x = torch.cat(dim=1, tensors=[net.a(x), net.b(x)])
        x = torch.flatten(input=F.relu(input=x), start_dim=1)
        return net.c(torch.reshape(input=x, shape=(-1, 7 * 64)))

    return Net(forward, a=conv(3, 4), b=conv(3, 3), c=nn.Linear(7 * 64, 2))


@golden("""
    a: 4 of a -> b
    frozen b: 2, it is an output of the network
    """)
def pixel_shuffle() -> nn.Module:
    """Four channels become the four positions of one."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(F.pixel_shuffle(net.a(x), 2))

    return Net(forward, a=conv(3, 16), b=conv(4, 2))


@golden("""
    frozen b: 2, it is an output of the network
    frozen a: 3, all of it stays or goes together
    """)
def one_unit() -> nn.Module:
    """Three equal parts of one channel each."""

    def forward(net: Net, x: Tensor) -> Any:
        first, second, third = net.a(x).chunk(3, 1)
        return net.b(first * second + third)

    return Net(forward, a=conv(3, 3), b=conv(1, 2))


@golden("""
    a: 4 of a -> b
    a#2: 3 of a -> c, d
    b: 4 of b -> last
    c: 4 of c -> last
    d: 2 of d -> last
    frozen last: 2, it is an output of the network
    frozen a: 1, it is a single channel
    frozen d: 2, no layer that could be reweighted reads it
    """)
def thirds() -> nn.Module:
    """`tensor_split` cuts where it is told, `narrow` and slices too; what nobody reads has nobody to make up for it."""

    def forward(net: Net, x: Tensor) -> Any:
        low, high = torch.tensor_split(net.a(x), 2, dim=1)
        return net.last(torch.cat([net.b(low), net.c(high.narrow(1, 0, 3)), net.d(high)[:, :-2]], 1))

    return Net(forward, a=conv(3, 8), b=conv(4, 4), c=conv(3, 4), d=conv(4, 4), last=conv(10, 2))


@golden("""
    a: 4 of a with norm -> b
    frozen b: 2, it is an output of the network
    """)
def builtin_norm() -> nn.Module:
    """torch.batch_norm takes its parameters in another order than torch.nn.functional's."""

    def forward(net: Net, x: Tensor) -> Any:
        norm = net.norm
        x = torch.batch_norm(
            net.a(x), norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, False
        )
        return net.b(x)

    return Net(forward, a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 2))


@golden("""
    frozen a: 8, max_pool1d acts on a dimension that carries channels
    frozen b: 2, it is an output of the network
    """)
def pooled_features() -> nn.Module:
    """1-d pooling of a matrix takes its rows for channels, and pools over ours."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(F.max_pool1d(net.a(x.mean((2, 3))), 3, 1, 1))

    return Net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2))


@golden("""
    b: 5 of b -> c
    frozen a: 8, nn.Conv2d acts on a dimension that carries channels
    frozen c: 2, it is an output of the network
    """)
def text_cnn() -> nn.Module:
    """Kernels as wide as the vector of a word: it stays, the kernels do not have to."""

    def forward(net: Net, x: Tensor) -> Any:
        words = net.a(x.mean(1))[:, None]
        return net.c(F.max_pool1d(net.b(words).relu().squeeze(3), 7).squeeze(2))

    return Net(forward, a=nn.Linear(8, 8), b=nn.Conv2d(1, 5, (2, 8)), c=nn.Linear(5, 2))


@golden("""
    frozen a: 8, Tensor.roll cannot be written for fewer channels
    frozen b: 2, it is an output of the network
    """)
def rolled() -> nn.Module:
    """With the positions at once: no list of channels does that."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(net.a(x).roll((3, 1), (1, 2)))

    return Net(forward, a=conv(3, 8), b=conv(8, 2))


@golden("""
    a: 3 of a -> b
    frozen b: 2, it is an output of the network
    frozen a: 5, no layer that could be reweighted reads it
    """)
def indexed() -> nn.Module:
    """Channels picked by number are numbered anew."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.b(net.a(x)[:, [1, 3, 5]])

    return Net(forward, a=conv(3, 8), b=conv(3, 2))


@golden("""
    a: 4 of a with b, norm -> c
    frozen c: 2, it is an output of the network
    """)
def normalised_groups() -> nn.Module:
    """Groups that only a later layer couples: they go as they are."""

    def forward(net: Net, x: Tensor) -> Any:
        return net.c(net.norm(net.b(net.a(x))))

    return Net(forward, a=conv(3, 16), b=conv(16, 8, groups=4), norm=nn.GroupNorm(4, 8), c=conv(8, 2))


@golden("""
    a: 2 of a with pad, b -> c
    frozen c: 2, it is an output of the network
    """)
def heads_of_groups() -> nn.Module:
    """Queries, keys and values of a head are a group each, at two scales; a column of ones counts for each head."""

    def forward(net: Net, x: Tensor) -> Any:
        small = net.a(x)
        query, key, value = torch.cat([small, net.b(small)], 1).reshape(-1, 4, 12, 64).chunk(3, 2)
        mixed = query.transpose(2, 3) @ (key @ F.pad(value.transpose(2, 3), (0, 1), value=1.0))
        mean = mixed[..., :-1] / (mixed[..., -1:] + 1e-5)
        return net.c(mean.transpose(2, 3).reshape(-1, 16, 8, 8))

    return Net(forward, a=conv(3, 24), b=conv(24, 24, groups=6), c=conv(16, 2))


@golden("""
    a: 2 of a -> c
    frozen c: 2, it is an output of the network
    """)
def heads_among_samples() -> nn.Module:
    """Keys of all heads go through one depthwise convolution, as if each were a sample."""

    def forward(net: Net, x: Tensor) -> Any:
        query, key, value = net.a(x).reshape(-1, 3, 2, 4, 64).unbind(1)
        key = net.b(key.reshape(-1, 4, 8, 8)).reshape(-1, 2, 4, 16)
        scores = (query.transpose(2, 3) @ key).softmax(2)
        return net.c((value @ scores).reshape(-1, 8, 4, 4))

    return Net(forward, a=conv(3, 24), b=conv(4, 4, groups=4, stride=2), c=conv(8, 2))


@pytest.mark.parametrize("name", GOLDEN)
def test_graph(name: str) -> None:
    make, expected = GOLDEN[name]
    assert written(make().eval()) == expected


def test_any_batch_will_do() -> None:
    """One sample or five: sizes that happen to agree with the batch couple nothing."""
    for size in (1, 4, 6):
        example = torch.randn(size, *IMAGE[1:])
        channels = describe(next(traces(residual().eval(), example)), example).channels
        assert [len(group.units) for group in channels.groups] == [4, 6, 5]
