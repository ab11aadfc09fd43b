"""Random networks: what comes out is the original with its dropped channels masked and its new weights put in.

The networks are float64, so that a wiring fault (order 1) and rounding (1e-12) cannot be mistaken for each other.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from hypothesis import HealthCheck, Phase, event, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import parameters
from torch import Tensor, fx, nn

from subprune_fx import Plan, Pruned, SubpruneError, apply, prune
from subprune_fx.frontends.calls import COMPUTED
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_edit import is_written
from subprune_fx.option_values import VARIANTS
from subprune_fx.passes.budgets import BUDGETS
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.outputs import is_score
from subprune_fx.passes.proof import difference
from subprune_fx.plan import same

EXAMPLES = int(os.environ.get("SUBPRUNE_EXAMPLES", "200"))
"""Networks. Failing ones are not shrunk, which takes longer than to look at them."""
ROUNDING = 1e-9
"""Relative to the largest output: ten layers of float64 arithmetic in another order."""

Part = Callable[[nn.Module, Tensor], Tensor]


@dataclasses.dataclass
class Builder:
    """A network under construction: layers by name, and what is done one after the other.

    Attributes:
        draw: Hypothesis' own.
        layers: Layers that exist.
        channels: Of the current activation.
        size: Height and width of the current activation.
        names: What was built, for the failure message.
    """

    draw: Any
    layers: dict[str, nn.Module | nn.Parameter] = dataclasses.field(default_factory=dict)
    channels: int = 2
    size: int = 8
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, layer: nn.Module | nn.Parameter) -> str:
        name = f"l{len(self.layers)}"
        self.layers[name] = layer
        return name

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def conv(self, inputs: int, outputs: int, **options: Any) -> str:
        kernel = self.one_of(1, 3)
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=self.flag(), **options)
        return self.add(layer)


class Net(nn.Module):
    """Parts run one after the other."""

    def __init__(self, layers: dict[str, nn.Module | nn.Parameter], parts: list[Part]) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(self, x)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Net:
        layers = {name: copy.deepcopy(getattr(self, name), memo) for name in (*self._modules, *self._parameters)}
        twin = Net(layers, self.parts)
        return twin.train(self.training)


Kind = Callable[[Builder], Part]
NEEDS: dict[str, Callable[[Builder], bool]] = {}
"""By name of a kind of part, when it can be built."""


def needs(fits: Callable[[Builder], bool]) -> Callable[[Kind], Kind]:
    def register(kind: Kind) -> Kind:
        NEEDS[kind.__name__] = fits
        return kind

    return register


def run(net: nn.Module, name: str, x: Tensor) -> Tensor:
    out: Tensor = getattr(net, name)(x)
    return out


def convolution(b: Builder) -> Part:
    outputs = b.integer(2, 6)
    name = b.conv(b.channels, outputs)
    b.channels = outputs
    return lambda net, x: run(net, name, x)


@needs(lambda b: b.size >= 4)
def strided(b: Builder) -> Part:
    outputs = b.integer(2, 6)
    mode = b.one_of("zeros", "reflect", "replicate", "circular")
    name = b.add(nn.Conv2d(b.channels, outputs, 3, stride=2, padding=1, padding_mode=mode))
    b.channels, b.size = outputs, (b.size + 1) // 2
    return lambda net, x: run(net, name, x)


@needs(lambda b: b.channels % 2 == 0)
def grouped(b: Builder) -> Part:
    outputs = 2 * b.integer(1, 3)
    name = b.conv(b.channels, outputs, groups=2)
    b.channels = outputs
    return lambda net, x: run(net, name, x)


def depthwise(b: Builder) -> Part:
    multiplier = b.one_of(1, 2)
    name = b.conv(b.channels, b.channels * multiplier, groups=b.channels)
    b.channels *= multiplier
    return lambda net, x: run(net, name, x)


@needs(lambda b: b.size <= 8)
def transposed(b: Builder) -> Part:
    outputs = b.integer(2, 5)
    name = b.add(nn.ConvTranspose2d(b.channels, outputs, 3, stride=2, padding=1, output_padding=1))
    b.channels, b.size = outputs, 2 * b.size
    return lambda net, x: run(net, name, x)


def norm(b: Builder) -> Part:
    layer = nn.BatchNorm2d(b.channels, affine=b.flag())
    for tensor in (layer.weight, layer.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 2.0)
    for tensor in (layer.bias, layer.running_mean):
        if tensor is not None:
            nn.init.uniform_(tensor, -0.5, 0.5)
    name = b.add(layer)
    return lambda net, x: run(net, name, x)


def activation(b: Builder) -> Part:
    """Some do not map zero to zero: a dropped channel is not one that was zero before them."""
    kind = b.one_of("relu", "sigmoid", "gelu", "tanh", "hardswish", "prelu", "leaky", "cos")
    if kind == "prelu":
        name = b.add(nn.PReLU(b.channels, init=0.3))
        return lambda net, x: run(net, name, x)
    table: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
        "tanh": torch.tanh,
        "hardswish": F.hardswish,
        "leaky": F.leaky_relu,
        "cos": torch.cos,
    }
    return lambda net, x: table[kind](x)


@needs(lambda b: b.size >= 4)
def pool(b: Builder) -> Part:
    b.size //= 2
    return b.one_of(lambda net, x: F.max_pool2d(x, 2), lambda net, x: F.avg_pool2d(x, 2))  # type: ignore[no-any-return]


def residual(b: Builder) -> Part:
    inner = b.integer(2, 5)
    first, second = b.conv(b.channels, inner), b.conv(inner, b.channels)
    after = b.flag()

    def part(net: nn.Module, x: Tensor) -> Tensor:
        y = x + run(net, second, run(net, first, x).relu())
        return y.relu() if after else y

    return part


@needs(lambda b: b.size % 2 == 0 and b.size >= 4)
def option_a(b: Builder) -> Part:
    """The shortcut takes every other position and pads channels."""
    front, back = b.integer(0, 2), b.integer(1, 2)
    outputs = b.channels + front + back
    name = b.add(nn.Conv2d(b.channels, outputs, 3, stride=2, padding=1))
    b.channels, b.size = outputs, b.size // 2

    def part(net: nn.Module, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, back))
        return (run(net, name, x) + short).relu()

    return part


def dense(b: Builder) -> Part:
    grown = b.integer(1, 4)
    name = b.conv(b.channels, grown)
    first = b.flag()
    b.channels += grown

    def part(net: nn.Module, x: Tensor) -> Tensor:
        y = run(net, name, x)
        return torch.cat([x, y] if first else [y, x], 1)

    return part


@needs(lambda b: b.channels >= 4)
def split(b: Builder) -> Part:
    """Cut in two at a random place, in one of several spellings; each part has a layer of its own, or none."""
    at = b.integer(1, b.channels - 1)
    spelling = b.one_of("split", "method", "slice", "narrow", "tensor_split")
    low, high = b.conv(at, b.integer(1, 3)), b.conv(b.channels - at, b.integer(1, 3))
    bare = b.flag()
    left, right = b.layers[low], b.layers[high]
    assert isinstance(left, nn.Conv2d)
    assert isinstance(right, nn.Conv2d)
    total = b.channels
    b.channels = left.out_channels + (total - at if bare else right.out_channels)

    def part(net: nn.Module, x: Tensor) -> Tensor:
        if spelling == "split":
            y, z = torch.split(x, [at, total - at], dim=1)
        elif spelling == "method":
            y, z = x.split([at, total - at], 1)  # type: ignore[no-untyped-call]
        elif spelling == "slice":
            y, z = x[:, :at], x[:, at:]
        elif spelling == "narrow":
            y, z = x.narrow(1, 0, at), x.narrow(1, at, total - at)
        else:
            y, z = torch.tensor_split(x, [at], dim=1)
        return torch.cat([run(net, low, y), z.relu() if bare else run(net, high, z)], 1)

    return part


@needs(lambda b: b.channels % 2 == 0 and b.channels >= 4)
def gate(b: Builder) -> Part:
    """Half of the channels gate the other half."""
    b.channels //= 2

    def part(net: nn.Module, x: Tensor) -> Tensor:
        y, z = x.chunk(2, 1)
        return y * torch.sigmoid(z)

    return part


def squeeze_excite(b: Builder) -> Part:
    inner = b.integer(1, 3)
    down, up = b.add(nn.Conv2d(b.channels, inner, 1)), b.add(nn.Conv2d(inner, b.channels, 1))

    def part(net: nn.Module, x: Tensor) -> Tensor:
        scale = run(net, up, run(net, down, x.mean((2, 3), keepdim=True)).relu())
        return x * scale.sigmoid()

    return part


@needs(lambda b: b.channels % 2 == 0)
def shuffle(b: Builder) -> Part:
    module = b.flag()
    name = b.add(nn.ChannelShuffle(2))
    channels = b.channels

    def part(net: nn.Module, x: Tensor) -> Tensor:
        if module:
            return run(net, name, x)
        n, _, h, w = x.shape
        return x.contiguous().view(n, 2, channels // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)

    return part


@needs(lambda b: b.channels % 2 == 0 and b.channels >= 4)
def shuffled(b: Builder) -> Part:
    """Blocks that convolve half of the channels and shuffle all, one behind the other."""
    half, count = b.channels // 2, b.integer(1, 3)
    layers = [b.conv(half, half) for _ in range(count)]

    def part(net: nn.Module, x: Tensor) -> Tensor:
        for layer in layers:
            y, z = x.chunk(2, 1)
            x = torch.stack([y, run(net, layer, z).relu()], 2).flatten(1, 2)
        return x

    return part


@needs(lambda b: b.channels % 4 == 0 and b.size <= 8)
def pixel_shuffle(b: Builder) -> Part:
    b.channels, b.size = b.channels // 4, 2 * b.size
    return lambda net, x: F.pixel_shuffle(x, 2)


@needs(lambda b: b.size % 2 == 0 and b.channels <= 4)
def pixel_unshuffle(b: Builder) -> Part:
    b.channels, b.size = b.channels * 4, b.size // 2
    return lambda net, x: F.pixel_unshuffle(x, 2)


def channels_last(b: Builder) -> Part:
    """A linear layer over the channels of every position."""
    outputs = b.integer(2, 5)
    name = b.add(nn.Linear(b.channels, outputs))
    b.channels = outputs
    return lambda net, x: run(net, name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def scale(b: Builder) -> Part:
    """A parameter per channel, and a buffer-like one that is the same for all."""
    one = b.add(nn.Parameter(torch.rand(1, b.channels, 1, 1) + 0.5))
    two = b.add(nn.Parameter(torch.rand(()) + 0.5))
    return lambda net, x: x * getattr(net, one) + getattr(net, two)


def position(b: Builder) -> Part:
    """A parameter per channel and position."""
    name = b.add(nn.Parameter(torch.rand(1, b.channels, b.size, b.size) - 0.5))
    return lambda net, x: x + getattr(net, name)


def twice(b: Builder) -> Part:
    """The same layer at two places."""
    name = b.conv(b.channels, b.channels)
    return lambda net, x: run(net, name, run(net, name, x).relu())


def shared_norm(b: Builder) -> Part:
    """Two layers with one BatchNorm: neither intercept may be written into it."""
    outputs = b.integer(2, 4)
    first, second = b.conv(b.channels, outputs), b.conv(b.channels, outputs)
    layer = nn.BatchNorm2d(outputs)
    assert layer.running_mean is not None
    nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    name = b.add(layer)
    b.channels = 2 * outputs
    return lambda net, x: torch.cat([run(net, name, run(net, layer, x)) for layer in (first, second)], 1)


def rows(x: Tensor) -> Tensor:
    """Positions as tokens: (samples, height * width, channels)."""
    return x.flatten(2).transpose(1, 2)


def image(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`."""
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, like.shape[2], like.shape[3])


@needs(lambda b: b.size <= 8)
def attention(b: Builder) -> Part:
    """Self-attention over positions, with a residual; heads of equal or grouped queries."""
    heads, width = b.integer(1, 3), b.integer(2, 3)
    shared = b.flag()
    pairs = 1 if shared else heads
    names = [b.add(nn.Linear(b.channels, width * count, bias=b.flag())) for count in (heads, pairs, pairs)]
    back = b.add(nn.Linear(heads * width, b.channels))
    written = b.flag()

    def part(net: nn.Module, x: Tensor) -> Tensor:
        tokens = rows(x)
        q, k, v = (
            run(net, name, tokens).view(x.shape[0], -1, count, width).transpose(1, 2)
            for name, count in zip(names, (heads, pairs, pairs), strict=True)
        )
        if written:
            y = ((q @ k.transpose(-2, -1)) * width**-0.5).softmax(-1) @ v
        else:
            k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
            y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).reshape(x.shape[0], -1, heads * width)
        return x + image(run(net, back, y), x)

    return part


@needs(lambda b: b.channels % 2 == 0 and b.size <= 8)
def multihead(b: Builder) -> Part:
    """torch's own attention module."""
    name = b.add(nn.MultiheadAttention(b.channels, 2, batch_first=True, bias=b.flag()))

    def part(net: nn.Module, x: Tensor) -> Tensor:
        tokens = rows(x)
        return image(getattr(net, name)(tokens, tokens, tokens, need_weights=False)[0], x)

    return part


def feed_forward(b: Builder) -> Part:
    """Normalise the channels of every position, widen, narrow, add."""
    hidden, gated = 2 * b.integer(1, 4), b.flag()
    kind = b.one_of(nn.LayerNorm, nn.RMSNorm)
    first = b.add(_shaken(kind(b.channels)))
    up, down = b.add(nn.Linear(b.channels, hidden)), b.add(nn.Linear(hidden // 2 if gated else hidden, b.channels))

    def part(net: nn.Module, x: Tensor) -> Tensor:
        y = run(net, up, run(net, first, rows(x)))
        return x + image(run(net, down, F.glu(y, -1) if gated else F.gelu(y)), x)

    return part


def _shaken(layer: nn.Module) -> nn.Module:
    """With a scale and shift of its own for every channel."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


@needs(lambda b: b.size >= 2)
def group_norm(b: Builder) -> Part:
    groups = b.one_of(*(count for count in (1, 2, 3) if b.channels % count == 0))
    layer = nn.InstanceNorm2d(b.channels, affine=True) if b.flag() else nn.GroupNorm(groups, b.channels)
    name = b.add(_shaken(layer))
    return lambda net, x: run(net, name, x)


@needs(lambda b: b.size % 2 == 0)
def windows(b: Builder) -> Part:
    """Roll, cut into windows of two by two, a layer over the channels there, and back."""
    name = b.add(nn.Linear(b.channels, b.channels))

    def part(net: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = torch.roll(x, (1, -1), (2, 3)).permute(0, 2, 3, 1)
        y = y.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = run(net, name, y).reshape(n, h // 2, w // 2, 2, 2, -1).transpose(2, 3).reshape(n, h, w, -1)
        return x + y.permute(0, 3, 1, 2)

    return part


@needs(lambda b: b.size <= 4)
def enlarge(b: Builder) -> Part:
    b.size *= 2
    mode = b.one_of("nearest", "bilinear")
    return lambda net, x: F.interpolate(x, scale_factor=2, mode=mode)


@needs(lambda b: b.channels <= 6)
def repeated(b: Builder) -> Part:
    """Channels that occur more than once."""
    b.channels *= 2
    return b.one_of(  # type: ignore[no-any-return]
        lambda net, x: torch.cat([x, x.relu()], 1),
        lambda net, x: x.repeat(1, 2, 1, 1),
        lambda net, x: torch.stack([x, x + 1], 2).flatten(1, 2),
        lambda net, x: x.repeat_interleave(2, 1),
    )


def product(b: Builder) -> Part:
    """A weight that is no layer's."""
    outputs = b.integer(2, 5)
    name = b.add(nn.Parameter(torch.randn(outputs, b.channels)))
    b.channels = outputs
    return b.one_of(  # type: ignore[no-any-return]
        lambda net, x: torch.einsum("oc,nchw->nohw", getattr(net, name), x),
        lambda net, x: (x.permute(0, 2, 3, 1) @ getattr(net, name).t()).permute(0, 3, 1, 2),
    )


def weight_norm(b: Builder) -> Part:
    outputs = b.integer(2, 4)
    name = b.add(nn.utils.parametrizations.weight_norm(nn.Conv2d(b.channels, outputs, 1)))
    b.channels = outputs
    return lambda net, x: run(net, name, x)


def computed(b: Builder) -> Part:
    """A weight that is standardised each time it is used."""
    outputs = b.integer(2, 4)
    name, gain = b.conv(b.channels, outputs), b.add(nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5))
    b.channels = outputs

    def part(net: nn.Module, x: Tensor) -> Tensor:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight * getattr(net, gain), layer.bias, padding=layer.padding)

    return part


def channel_filter(b: Builder) -> Part:
    """ECA: neighbouring channels decide on each other."""
    name = b.add(nn.Conv1d(1, 1, 3, padding=1, bias=b.flag()))

    def part(net: nn.Module, x: Tensor) -> Tensor:
        gates = run(net, name, x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gates.transpose(1, 2).unsqueeze(3)

    return part


def volume(b: Builder) -> Part:
    """Two slices of depth, a convolution over all three, and their mean."""
    outputs = b.integer(2, 4)
    name = b.add(nn.Conv3d(b.channels, outputs, (2, 1, 1)))
    b.channels = outputs
    return lambda net, x: run(net, name, torch.stack([x, x.flip(3)], 2)).mean(2)


def order(b: Builder) -> Part:
    """Reductions over channels, which see how many there are."""
    return b.one_of(  # type: ignore[no-any-return]
        lambda net, x: x * x.mean(1, keepdim=True),
        lambda net, x: x - x.amax((2, 3), keepdim=True),
        lambda net, x: x * x.softmax(1),
        lambda net, x: F.normalize(x, dim=1),
    )


PARTS: tuple[Kind, ...] = (
    *(convolution, convolution, convolution, strided, grouped, depthwise, transposed, norm, norm),
    *(activation, activation, pool, residual, option_a, dense, split, gate, squeeze_excite, shuffle, shuffled),
    *(pixel_shuffle, pixel_unshuffle, channels_last, scale, position, twice, shared_norm),
    *(attention, multihead, feed_forward, group_norm, windows, enlarge, repeated, product),
    *(weight_norm, computed, channel_filter, volume, order),
)


def flatten_head(b: Builder) -> Part:
    size = b.one_of(1, 2)
    hidden = b.integer(2, 5)
    first, second = b.add(nn.Linear(b.channels * size * size, hidden)), b.add(nn.Linear(hidden, 3))
    view = b.flag()

    def part(net: nn.Module, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, size)
        x = x.contiguous().view(x.size(0), -1) if view else x.flatten(1)
        return run(net, second, run(net, first, x).relu())

    return part


def mean_head(b: Builder) -> Part:
    name = b.add(nn.Linear(b.channels, 3, bias=b.flag()))
    return lambda net, x: run(net, name, x.mean((2, 3)))


def image_head(b: Builder) -> Part:
    """Fully convolutional: the output is an image."""
    name = b.conv(b.channels, 2)
    return lambda net, x: run(net, name, x)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, str]:
    b = Builder(draw)
    torch.manual_seed(b.integer(0, 2**16))
    parts = [convolution(b)]
    for _ in range(b.integer(1, 7)):
        kind = b.one_of(*(kind for kind in PARTS if NEEDS.get(kind.__name__, bool)(b)))
        parts.append(kind(b))
        b.names.append(kind.__name__)
    head = b.one_of(flatten_head, mean_head, image_head)
    parts.append(head(b))
    net = Net(b.layers, parts).double().eval()
    return net, " ".join([*b.names, head.__name__])


def pruned(net: nn.Module, x: Tensor, ratio: float, options: dict[str, Any]) -> Pruned | None:
    """At `ratio`, or at the largest that the refusal says can be reached; None where nothing can be pruned."""
    try:
        return prune(net, x, ratio=ratio, **options)
    except SubpruneError as error:
        if "nothing to prune" in str(error):
            return None
        found = re.search(r"ask for at most ([0-9.]+)$", str(error))
        if found is None:
            raise
        return None if float(found[1]) <= 1 else prune(net, x, ratio=float(found[1]), **options)


@given(
    drawn=networks(),
    ratio=st.floats(1.1, 6),
    variant=st.sampled_from(VARIANTS),
    budget=st.sampled_from(sorted(BUDGETS)),
    reweight=st.booleans(),
    intercept=st.booleans(),
)
@examples(
    max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)  # no shrinking: it takes an hour
def test_pruned_is_masked(
    drawn: tuple[nn.Module, str],
    ratio: float,
    variant: str,
    budget: str,
    reweight: bool,
    intercept: bool,
) -> None:
    net, _ = drawn
    x = torch.randn(12, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        scores = is_score(net(x))  # accuracy is of nothing else
    options = {"variant": variant, "budget": budget if scores else "output", "reweight": reweight}
    found = pruned(net, x, ratio, options | {"intercept": intercept})
    if found is None:
        event("nothing to prune")
        return
    network = analyse(net, x[:2])
    other = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    reference = Masked(network, found.plan)  # knows activations of two samples, where heads and samples share an axis
    with torch.no_grad():
        wanted = torch.cat([reference.run(other[:2]), reference.run(other[2:])])
        assert difference(found.module(other), wanted) < ROUNDING
    check_size(network, found)
    check_plan(network, net, found, other)


def check_size(network: FxNetwork, found: Pruned) -> None:
    """The ratio is met, by parameters that are really gone, and every group keeps something."""
    before, after = parameters(network.graph_module), parameters(found.module)
    assert (found.report.before.parameters, found.report.after.parameters) == (before, after)
    assert before / after >= found.report.ratio
    assert all(0 < len(decision.kept) <= decision.channels for decision in found.plan.decisions)


def check_plan(network: FxNetwork, net: nn.Module, found: Pruned, x: Tensor) -> None:
    """The plan, written and read again, makes the same network of the trace, and of the class where it can."""
    with TemporaryDirectory() as folder:
        found.plan.save(Path(folder) / "plan")
        again = Plan.load(Path(folder) / "plan")
    assert same(again, found.plan)
    with torch.no_grad():
        expected = found.module(x)
        assert torch.equal(apply(again, network.graph_module)(x), expected)
        rigid = any(isinstance(part, nn.MultiheadAttention) for part in net.modules()) or any(
            name.rpartition(".")[2].startswith(COMPUTED) for name in again.shapes
        )
        if not rigid and not isinstance(net, fx.GraphModule) and not any(is_written(net, c) for c in again.constants):
            torch.testing.assert_close(apply(again, net)(x), expected, rtol=ROUNDING, atol=ROUNDING)
