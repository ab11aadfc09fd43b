"""One small network for each op that users bring: pruned is masked, by both tracers, and only what must stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from support import against_masked, parameters
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import subprune_fx
from subprune_fx.frontends.describe import describe
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import difference, halved

OUTPUT = "it is an output of the network"
BODIES: dict[str, Callable[[Any, Tensor], Any]] = {
    "roll": lambda _, x: torch.roll(x, (1, 2), (2, 3)),
    "stack and sum": lambda _, x: torch.stack([x, x * 2], 1).sum(1),
    "stack and unbind": lambda _, x: torch.stack([x, x.flip(2)], 1).unbind(1)[1],
    "split into parts": lambda _, x: torch.cat([p * i for i, p in enumerate(torch.split(x, [3, 5, 4], 1), 1)], 1),
    "chunk": lambda _, x: torch.cat(tuple(reversed(x.chunk(3, 1))), 1),
    "chunk unevenly": lambda _, x: torch.cat(x.chunk(5, dim=1)[::-1], 1),
    "glu": lambda _, x: torch.cat([F.glu(x, 1), F.glu(x.flip(2), dim=1)], 1),
    "swiglu": lambda _, x: torch.cat([F.silu(x[:, :6]) * x[:, 6:], x[:, 3:9]], 1),
    "slices without an end": lambda _, x: torch.cat(
        [torch.ops.aten.slice.Tensor(x, 1, 6), torch.ops.aten.slice.Tensor(x, 1, None, 6)], 1
    ),
    "cat of itself": lambda _, x: torch.cat([x, x], 1)[:, 4:16],
    "tile": lambda _, x: x.repeat(1, 2, 1, 1)[:, :12],
    "interleave": lambda _, x: x.repeat_interleave(2, 1)[:, ::2],
    "interleave into a known size": lambda _, x: x.repeat_interleave(2, 1, output_size=24)[:, ::2],
    "one slope, of rows": lambda m, x: m.slope(x.flatten(2).mT).mT.reshape(-1, 12, 8, 8),
    "a norm of means of means": lambda _, x: _normed_twice(x),
    "one gate, repeated": lambda m, x: x * _score(m, x).repeat(1, 12, 1, 1) - _score(m, x).tile((12, 1, 1)),
    "one gate, expanded": lambda m, x: x * _score(m, x).expand(x.size()),
    "groups by sizes": lambda m, x: (
        F.conv2d(x, m.grouped.weight, None, 1, m.grouped.weight.shape[2] // 2, 1, x.shape[1] // 4)
        + F.conv2d(x, m.deep, padding=1, groups=x.size(1))
    ),
    "expand": lambda _, x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8),
    "pad channels": lambda _, x: F.pad(x, (0, 0, 0, 0, 2, 2))[:, 1:13],
    "pad with minus infinity": lambda _, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1),
    "pad positions": lambda _, x: F.pad(x, (1, 1, 0, 2), value=0.5)[:, :, :8, :8],
    "circular pad": lambda _, x: F.pad(x, (1, 1, 1, 1), mode="circular")[:, :, 1:9, 1:9],
    "pixel shuffle": lambda _, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "normalised after a shuffle": lambda _, x: F.pixel_unshuffle(_by_hand(F.pixel_shuffle(x, 2)), 2),
    "normalised by sums": lambda _, x: (x - x.sum(1, keepdim=True) / x.shape[1]) / x.square().sum(1, True).sqrt(),
    "normalised, the scale times the deviation first": lambda m, x: _as_flax(x, m.gamma),
    "channel shuffle": lambda _, x: x.view(x.shape[0], 3, 4, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8),
    "baked reshape": lambda _, x: x.reshape(-1, 12, 64).permute(0, 2, 1).reshape(-1, 8, 8, 12).permute(0, 3, 1, 2),
    "reductions": lambda _, x: x - x.mean((2, 3), keepdim=True) + x.amax(2, keepdim=True) * x.std(3, keepdim=True),
    "numpy's names of arguments": lambda _, x: _as_numpy_spells_it(x),
    "largest of positions": lambda _, x: (
        x
        - x.max(3, keepdim=True)[0]
        + torch.min(x, 2, keepdim=True).values * x.flatten(2).median(2)[0][..., None, None]
    ),
    "larger of two": lambda _, x: (
        torch.max(x, x.flip(3)) - torch.min(x.roll(1, 2), torch.logical_or(x > 1, x < 0).float())
    ),
    "variance and mean": lambda _, x: x * torch.var_mean(x, 2, keepdim=True)[0],
    "sorted positions": lambda _, x: x.sort(-1)[0] + x.topk(8)[0] + x.cummax(2)[0] * (x.argmax(3, keepdim=True) > 3),
    "unpooling": lambda m, x: F.max_unpool2d(
        m.inner(F.max_pool2d(x, 2, return_indices=True)[0]), F.max_pool2d(x, 2, return_indices=True)[1], [2, 2]
    ),
    "grid sample": lambda m, x: F.grid_sample(x, m.grid.expand(x.shape[0], -1, -1, -1), align_corners=False),
    "grid sample of heads": lambda m, x: F.grid_sample(
        F.max_pool2d(x.reshape(-1, 4, 8, 8), 3, 1, 1),
        m.spots(x.mean((2, 3))).reshape(-1, 1, 1, 2).tanh() + m.grid,
        align_corners=False,
    ).reshape(-1, 12, 8, 8),
    "pooled rows": lambda _, x: (
        F.avg_pool2d(x.flatten(2).mT[:, None], (2, 1), stride=(2, 1))[:, 0].mT.reshape(-1, 12, 8, 4)
        + F.max_pool2d(x.permute(0, 2, 3, 1), (2, 1)).permute(0, 3, 1, 2)
    ),
    "upsampled rows": lambda _, x: F.interpolate(x.flatten(2), scale_factor=2).view(-1, 12, 8, 16)[..., ::2],
    "attributes": lambda _, x: x.mT.transpose(2, 3) * F.logsigmoid(x),
    "detached": lambda _, x: x.data * 2,
    "maps out of a vector": lambda m, x: (
        x * m.groups(m.batch(m.wide(x.mean((2, 3))).view(-1, 12, 2, 2))).amax((2, 3))[..., None, None]
    ),
    "upsampled maps out of a vector": lambda m, x: F.interpolate(
        m.wide(x.mean((2, 3))).view(-1, 12, 2, 2), size=(8, 8)
    ),
    "gathered positions": lambda _, x: (
        x.flatten(2).gather(2, torch.arange(63, -1, -1).expand(x.shape[0], 12, 64)).view_as(x)
    ),
    "best positions": lambda m, x: (
        x.flatten(2)
        .mT.gather(1, m.score(x.flatten(2).mT)[..., 0].topk(16)[1].unsqueeze(-1).repeat(1, 1, 12))
        .mT.reshape(-1, 12, 4, 4)
    ),
    "added up by places": lambda m, x: m.batch(_added_up(m, x)),
    "written to places": lambda m, x: x.index_copy(2, m.places[:4], x[:, :, 4:].relu()).index_fill(
        3, m.places[:2], 0.5
    ),
    "put to places": lambda m, x: m.batch(_put(m, x)),
    "how alike": lambda m, x: (
        x * F.cosine_similarity(x.flatten(2), m.inner(x).flatten(2), 2)[..., None, None]
        + m.alike(x, x.roll(1, 3))[:, :, None]
        + F.pairwise_distance(x, x.flip(3), keepdim=True)
    ),
    "distances": lambda _, x: torch.cdist(x, x.flip(2)) + torch.cdist(x.flip(3), x.mT, p=1.0),
    "frequencies of maps": lambda _, x: torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3)), dim=(-2, -1)).imag + x,
    "tensordot": lambda m, x: (
        torch.tensordot(x, m.linear.weight, dims=([1], [1])).permute(0, 3, 1, 2)
        + torch.tensordot(m.across.weight, x.transpose(0, 2), dims=1).transpose(0, 2)
    ),
    "largest of all channels": lambda _, x: x / (torch.max(x, 1, keepdim=True)[0] + x.min(dim=1, keepdim=True)[-2] + 1),
    "fixed order": lambda m, x: x[:, m.order] + torch.index_select(x, 1, m.order) * x.flip(1).index_select(1, m.order),
    "fixed order, other spellings": lambda m, x: (
        torch.index_select(input=x, index=m.order, dim=1) * x.index_select(dim=-3, index=m.order)
        + x.permute(0, 2, 3, 1).index_select(-1, m.short).permute(0, 3, 1, 2)
    ),
    "unfold and fold": lambda _, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "windows": lambda _, x: x.unfold(2, 2, 2).mean(-1).repeat_interleave(2, 2),
    "three factors": lambda _, x: torch.einsum("bchw, bcij, bcij -> bchw", x, x, x.sigmoid()),
    "one factor": lambda _, x: (
        torch.einsum("bchw->whbc", x).permute(2, 3, 1, 0)
        + torch.einsum("dcba->ac", x.permute(3, 1, 2, 0))[..., None, None]
    ),
    "scaled product": lambda _, x: (
        torch.baddbmm(x.mean(3), x.mean(3), x.new_ones(x.shape[0], 8, 8), alpha=0.5)[..., None] * x
    ),
    "one matrix for all heads": lambda m, x: (x.view(-1, 3, 4, 64).mT @ m.turn).mT.reshape(-1, 12, 8, 8),
    "one vector a head": lambda m, x: (
        torch.einsum("bhcp,hc->bhp", x.view(-1, 3, 4, 64), m.each)[:, :, None] * x.view(-1, 3, 4, 64)
    ).reshape(-1, 12, 8, 8),
    "heads among samples": lambda m, x: (
        torch.einsum("bpc,pqc->bpq", x.reshape(-1, 4, 64).mT, m.near) @ x.reshape(-1, 4, 64).mT
    ).mT.reshape(-1, 12, 8, 8),
    "heads filtered alike": lambda m, x: m.filter(x.reshape(-1, 4, 8, 8)).reshape(-1, 12, 8, 8) + x,
    "heads of a grouped layer": lambda m, x: _attended(m.grouped(x).reshape(-1, 3, 4, 64)),
    "type of another": lambda _, x: x.type_as(x.mean((2, 3))),
    "zeros to begin with": lambda m, x: m.inner(m.inner(x.new_zeros(x.shape[0], 12, 1, 1) + x) + torch.zeros(12, 8, 8)),
    "zeros beside": lambda _, x: torch.cat([x[:, :6], x.new_zeros(x.shape[0], 6, 8, 8)], 1) + x,
    "numbers out of nothing": lambda _, x: x + torch.arange(12.0).div(3).sin()[:, None, None] * torch.linspace(0, 1, 8),
    "filters of parameters": lambda m, x: (
        x * torch.einsum("cn,cnl->cl", m.rows, (-m.rows[:, :, None] * torch.arange(8)).exp())[:, None]
    ),
    "rows and columns": lambda m, x: x + (m.rows[:, :, None] + m.rows[:, None, :8]) * 2,
    "stretched parameter": lambda m, x: x + F.interpolate(m.gamma[None].expand(1, 12, 2, 2), size=(8, 8)),
    "frequencies": lambda _, x: (
        torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(8, 8)) + torch.fft.fft(x, dim=2).real + torch.fft.ifft(x).imag
    ),
    "modes": lambda m, x: m.inner(x) - _with_modes(m, x),
    "written in place": lambda m, x: m.batch(_shifted(x)),
    "softmax over positions": lambda _, x: x * x.flatten(2).softmax(-1).view_as(x),
    "tokens summed up": lambda m, x: (
        m.pair(torch.stack([x.mean((2, 3)), m.linear(x.amax((2, 3)))], 1)).mT[..., None]
        + m.pair(torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1)).mT[..., None]
        + x
    ),
    "none in front": lambda _, x: torch.cat([x[:, :, :0], x[:, :, 0:] * 2], dim=2),
    "sizes asserted": lambda m, x: _checked(m.inner(x)),
    "where": lambda _, x: torch.where(x > 0, x, x.exp() - 1),
    "scale by a size": lambda _, x: x * (x.shape[1] // 4) ** -0.5,
    "size as an operand": lambda _, x: torch.add(x, x.shape[1], alpha=x.size(1)) / x.shape[1],
    "interpolate": lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, ::2, ::2],
    "buffer along channels": lambda m, x: x * m.scale[None, :, None, None],
    "layer over a buffer": lambda m, x: x * m.linear(m.scale)[None, :, None, None],
    "mask over positions": lambda m, x: x.masked_fill(m.mask, 0.0),
    "layer scale": lambda m, x: x + m.gamma * m.inner(x),
    "group norm": lambda m, x: m.groups(x),
    "instance norm": lambda m, x: m.instance(x),
    "prelu": lambda m, x: m.prelu(x),
    "shared layer": lambda m, x: m.inner(m.inner(x).relu()),
    "grouped layer": lambda m, x: m.grouped(m.grouped(x).relu()),
    "grouped layer of normalised groups": lambda m, x: m.groups(
        m.grouped_transposed(m.grouped(m.groups(x)).relu())[:, :, :8, :8]
    ),
    "transposed": lambda m, x: m.transposed(x)[:, :, :8, :8],
    "transposed in groups": lambda m, x: m.grouped_transposed(x)[:, :, :8, :8],
    "transposed by depth": lambda m, x: m.doubled(m.deep_transposed(x))[:, ::2, :8, :8] - m.doubled(x)[:, 1::2],
    "volumes": lambda m, x: m.volume(x[:, :, None].expand(-1, -1, 3, -1, -1)).mean(2),
    "rows": lambda m, x: m.row(x.flatten(2)).unflatten(2, (8, 8)),
    "linear over channels": lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "convolution along channels": lambda m, x: (
        m.along(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid() * x
    ),
    "linear over positions": lambda m, x: m.across(x),
    "squeeze and excitation": lambda m, x: x * m.up(m.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None],
    "weight norm": lambda m, x: m.weight_normed(x),
    "spectral norm": lambda m, x: m.spectral_normed(x),
    "sum of branches": lambda m, x: sum((m.inner(x), m.grouped(x)), x),
}


BY_ONE = (
    *("split into parts", "chunk", "grid sample", "written in place", "gathered positions", "modes"),
    "added up by places",
)
"""symbolic_trace cannot switch modes, count parts, write into a tensor, or repeat a buffer for each sample."""


def _as_numpy_spells_it(x: Any) -> Any:
    library: Any = torch  # its stubs do not know these names
    weight = library.softmax(x, axis=-1).sum(keepdims=True, axis=3)
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    parts = [library.narrow(x, axis=1, start=5, length=7) * weight[:, 5:], centred[:, :5]]
    return library.cat(parts, axis=1)


def _attended(x: Tensor) -> Tensor:
    """Attention without a softmax, divided by what a column of ones comes to."""
    mixed = (x.mT @ (x @ F.pad(x.mT, (0, 1), value=1.0))).mT
    return (mixed[:, :, :-1] / mixed[:, :, -1:].exp()).reshape(-1, 12, 8, 8)


def _checked(x: Tensor) -> Tensor:
    torch._assert(x.shape[1] == 12, "as many channels as in training")
    return x * 2


def _shifted(x: Tensor) -> Tensor:
    """Some channels of the next row, as temporal shift networks write them."""
    out = torch.zeros_like(x)
    out[:, :4, :-1] = x[:, :4, 1:]
    out[:, 4:] = x[:, 4:]
    out[:, :, 3] = x[:, :, 2]
    return out


def _added_up(m: Any, x: Tensor) -> Tensor:
    """Values of neighbours, as networks on graphs sum them up."""
    nodes = x.flatten(2).transpose(1, 2)
    near = torch.zeros_like(nodes).index_add(1, m.places, nodes[:, :8] * 2)
    far = nodes.scatter_add(1, torch.arange(63, -1, -1)[:, None].expand(nodes.shape[0], 64, 12), nodes)
    return (near + far).transpose(1, 2).reshape(-1, 12, 8, 8)


def _as_flax(x: Tensor, gamma: Tensor) -> Tensor:
    off = x - x.mean(1, keepdim=True).expand(-1, 1, 8, 8)
    return off * ((off.pow(2).mean(1, keepdim=True) + 0.1).rsqrt().expand(-1, 1, -1, 8) * gamma) + gamma


def _by_hand(x: Tensor) -> Tensor:
    off = x - x.mean(1, keepdim=True)
    return F.normalize(off / (off.pow(2).mean(1, keepdim=True) + 0.1).sqrt() + x, dim=1)


def _score(m: Any, x: Tensor) -> Tensor:
    """One number for every position."""
    found: Tensor = m.score(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).sigmoid()
    return found


def _put(m: Any, x: Tensor) -> Tensor:
    """Values of some positions, and one number for all channels of others."""
    rows = x.permute(2, 3, 0, 1)
    some = rows.index_put((m.places[:4],), rows[4:].relu()).index_put((m.places[:2], m.places[2:4]), rows[0, :2] * 2)
    return torch.index_put(some, (m.mask,), torch.zeros(())).permute(2, 3, 0, 1)


def _normed_twice(x: Tensor) -> Tensor:
    """Over channels and positions, one dimension after the other (Conv-TasNet)."""
    off = x - x.mean(1, keepdim=True).mean((2, 3), keepdim=True)
    return off / (off.square().mean(1, keepdim=True).mean((2, 3), keepdim=True) + 1e-5).sqrt()


def _with_modes(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        out: Tensor = m.inner(x.float()).relu()
        with torch.no_grad():
            shift = out.mean((2, 3), keepdim=True)
    return out * 2 - shift


class Net(nn.Module):
    """stem -> body -> tail, with layers that the bodies use."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.tail = nn.Conv2d(12, 3, 3)
        self.inner = nn.Conv2d(12, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.transposed = nn.ConvTranspose2d(12, 12, 3, 2, 1, output_padding=1)
        self.grouped_transposed = nn.ConvTranspose2d(12, 12, 3, 2, 1, groups=3)
        self.deep_transposed = nn.ConvTranspose2d(12, 12, 3, 2, 1, groups=12)
        self.doubled = nn.ConvTranspose2d(12, 24, 3, 1, 1, groups=12)
        self.volume = nn.Conv3d(12, 12, 3, padding=1)
        self.row = nn.Conv1d(12, 12, 5, padding=2)
        self.linear = nn.Linear(12, 12)
        self.across, self.slope = nn.Linear(8, 8), nn.PReLU()
        self.along = nn.Conv1d(1, 1, 5, padding=4, dilation=2)
        self.filter = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pair = nn.Conv1d(2, 1, 1)
        self.alike = nn.CosineSimilarity(2)
        self.deep = nn.Parameter(torch.randn(12, 1, 3, 3))
        self.down = nn.Linear(12, 4)
        self.up = nn.Linear(4, 12)
        self.weight_normed = parametrizations.weight_norm(nn.Conv2d(12, 12, 3, padding=1))
        self.spectral_normed = parametrizations.spectral_norm(nn.Conv2d(12, 12, 1))
        self.score = nn.Linear(12, 1)
        self.wide, self.spots = nn.Linear(12, 48), nn.Linear(12, 6)
        self.groups = nn.GroupNorm(3, 12)
        self.batch = nn.BatchNorm2d(12)
        self.instance = nn.InstanceNorm2d(12, affine=True)
        self.prelu = nn.PReLU(12)
        self.gamma, self.rows = nn.Parameter(torch.rand(12, 1, 1)), nn.Parameter(torch.rand(12, 8))
        self.register_buffer("scale", torch.rand(12))
        self.turn = nn.Parameter(torch.rand(4, 4))
        self.each = nn.Parameter(torch.rand(3, 4))
        self.register_buffer("near", torch.rand(64, 64, 4))
        order = torch.randperm(12)
        self.register_buffer("order", order)
        self.register_buffer("short", order.int())
        self.register_buffer("places", torch.randperm(8))
        self.register_buffer("grid", torch.rand(1, 8, 8, 2) - 0.5)
        self.register_buffer("mask", torch.rand(8, 8) > 0.7)
        for part in self.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.PReLU)):
                for parameter in part.parameters():
                    nn.init.uniform_(parameter, 0.3, 1.3)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.body(self, self.stem(x)))


@pytest.mark.parametrize("name", BODIES)
def test_pruned_is_masked(name: str) -> None:
    x = torch.randn(3, 3, 8, 8)
    graphs = list(traces(Net(BODIES[name]), x))
    assert len(graphs) == 2 or name in BY_ONE
    for graph in graphs:
        network = describe(graph, x)
        assert network.channels.groups
        frozen = {item for item in network.channels.frozen if item.name != "score"}  # one channel, to sort by
        assert {item.reason for item in frozen} <= {OUTPUT, "it is a single channel"}
        plan, small = halved(network)
        assert parameters(small) < parameters(graph)
        assert against_masked(network, plan, small, x) < 1e-5
        with torch.no_grad():
            assert small(torch.randn(5, 3, 8, 8)).shape[0] == 5


STAYS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "lstm": (
        lambda m, x: m.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (8, 8)),
        "projects what it holds",
    ),
    "sort": (lambda _, x: x.sort(1).values, "sort"),
    "softmax over channels": (lambda _, x: x * x.softmax(1), "softmax mixes channels"),
    "uneven convolution along channels": (
        lambda m, x: m.along(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None] * x,
        "acts on a dimension that carries channels",
    ),
    "cosine of channels": (lambda _, x: x * F.cosine_similarity(x, x.flip(2), 1)[:, None], "reduces over channels"),
    "put among channels": (
        lambda m, x: x.transpose(0, 1).index_put((m.order,), x.transpose(0, 1) * 2).transpose(0, 1),
        "writes among channels",
    ),
    "bilinear": (lambda m, x: x + m.twice(x.mean((2, 3)), x.amax((2, 3)))[..., None, None], "multiplies all of it"),
    "grid sample of heads at the same places": (
        lambda m, x: F.grid_sample(
            x.reshape(-1, 4, 8, 8), m.grid.expand(3 * x.shape[0], -1, -1, -1), align_corners=False
        ).reshape(-1, 12, 8, 8),
        "grid_sample",
    ),
    "product over channels": (lambda _, x: x - x.prod(1, keepdim=True), "reduces over channels"),
    "a sum, read": (lambda m, x: x + m.along(x.sum(1).flatten(1)[:, None]).reshape(-1, 1, 8, 8), "statistic over"),
    "a mean, scaled": (lambda m, x: (x.mean(1, keepdim=True) * m.gamma).sigmoid(), "something else than to normalise"),
    "written among channels": (lambda m, x: x.index_copy(1, m.order, x * 2), "writes among channels"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_pruned_stays_with_a_reason(name: str) -> None:
    body, says = STAYS[name]
    model = Net(body)
    model.lstm = nn.LSTM(12, 16, proj_size=12, batch_first=True)
    model.along, model.twice = nn.Conv1d(1, 1, 4, padding="same"), nn.Bilinear(12, 12, 12)
    model.before, model.between, model.after = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 3, 1)
    model.stem = nn.Sequential(model.before, nn.ReLU(), model.between, model.stem)
    x = torch.randn(3, 3, 8, 8)
    found = subprune_fx.explain(model, x)
    assert "before" in {producer for group in found.groups for producer in group.producers} or found.groups
    assert any(says in row.reason.lower() for row in found.frozen), found
    pruned = subprune_fx.prune(model, torch.randn(24, 3, 8, 8), keep=0.5)
    with torch.no_grad():
        assert pruned.module(x).shape == model.eval()(x).shape


@pytest.mark.parametrize(
    ("equation", "back"),
    [
        ("bchw,co->obwh", lambda y: y.permute(1, 0, 3, 2)),
        ("bchw,co->bo", lambda y: y[..., None, None].expand(-1, -1, 8, 8)),
        ("co,bchw->bow", lambda y: y[..., None].expand(-1, -1, -1, 8)),
    ],
)
def test_a_product_that_reorders_or_sums_what_is_left_is_no_layer(equation: str, back: Callable[[Any], Any]) -> None:
    def body(m: Any, x: Tensor) -> Any:
        factors = [x, m.linear.weight] if equation.startswith("b") else [m.linear.weight, x]
        return back(torch.einsum(equation, *factors))

    model, x = Net(body), torch.randn(3, 3, 8, 8)
    model.stem = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), model.stem)
    for graph in traces(model, x):
        network = describe(graph, x)
        assert [group.name for group in network.channels.groups] == ["stem.0", "stem.2"]
        assert not any("einsum" in name for name in network.readers)
        assert "stem.3.0" in {item.name for item in network.channels.frozen if "einsum sums over it" in item.reason}
        assert against_masked(network, *halved(network), x) < 1e-5


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x + (x.mean((2, 3))[:, :, None] * m.down(x.amax((2, 3)))[:, None]).sum(2)[..., None, None],
        lambda m, x: x + (x.mean(3) @ m.down(x.amax(2).mT)).sum(2)[..., None, None],
        lambda m, x: x + (m.down(x.amax(2).mT).mT @ x.mean(3).mT).sum(1)[..., None, None],
    ],
)
def test_of_an_outer_product_the_wider_factor_goes(body: Callable[[Any, Tensor], Any]) -> None:
    model, x = Net(body), torch.randn(3, 3, 8, 8)
    network = analyse(model, x)
    assert [len(group.units) for group in network.channels.groups] == [12]
    assert {item.name for item in network.channels.frozen} == {"down", "tail"}
    plan, small = halved(network)
    assert against_masked(network, plan, small, x) < 1e-5


def test_of_an_outer_product_of_equals_the_second_goes_and_of_one_with_itself_none() -> None:
    def body(m: Any, x: Tensor) -> Any:
        rows = x.flatten(2).mT
        itself = (m.odd(rows).mT @ m.odd(rows)).mean((1, 2))
        return x + m.up((m.down(rows).mT @ m.small(rows)).mean(1))[..., None, None] * itself[:, None, None, None]

    model, x = Net(body), torch.randn(3, 3, 8, 8)
    model.small, model.odd = nn.Linear(12, 4), nn.Linear(12, 4)
    network = analyse(model, x)
    assert "small" in {group.name for group in network.channels.groups}
    assert {item.name for item in network.channels.frozen} == {"down", "odd", "tail"}
    assert against_masked(network, *halved(network), x) < 1e-5


def test_an_image_is_repeated_for_as_many_channels_as_are_left() -> None:
    model = Net(lambda m, x: m.inner(m.first(x).relu() + x.repeat(1, 12, 1, 1)))
    model.stem, model.first = nn.Sequential(), nn.Conv2d(1, 12, 3, padding=1)
    x = torch.randn(3, 1, 8, 8)
    for graph in traces(model, x):
        network = describe(graph, x)
        assert {group.name for group in network.channels.groups} == {"first", "inner"}
        assert against_masked(network, *halved(network), x) < 1e-5


def test_what_reassembles_positions_has_no_heads() -> None:
    """Channels that a pixel shuffle has made positions of are no heads, if what they weigh has no channels there."""

    def body(m: Any, x: Tensor) -> Any:
        weights = F.pixel_shuffle(m.wide_map(x), 2).softmax(1)
        windows = F.unfold(F.interpolate(x, scale_factor=2), 3, padding=1).view(-1, 12, 9, 16, 16)
        return torch.einsum("bkhw,bckhw->bchw", weights, windows)

    model, x = Net(body), torch.randn(3, 3, 8, 8)
    model.wide_map = nn.Conv2d(12, 36, 3, padding=1)
    network = analyse(model, x)
    assert {item.name for item in network.channels.frozen} == {"wide_map", "tail"}
    assert against_masked(network, *halved(network), x) < 1e-5


@pytest.mark.parametrize("squeeze", [Tensor.squeeze, torch.squeeze, torch.ops.aten.squeeze.default])
def test_a_squeeze_takes_no_single_channel_or_sample_with_it(squeeze: Callable[[Tensor], Tensor]) -> None:
    def body(m: Any, x: Tensor) -> Any:
        return x * m.linear(squeeze(squeeze(x.mean((2, 3), keepdim=True))))[..., None, None]

    model, x = Net(body), torch.randn(3, 3, 8, 8)
    pruned = subprune_fx.prune(model, torch.randn(24, 3, 8, 8), keep=0.01)
    assert {len(group.kept) for group in pruned.plan.decisions} == {1}
    with torch.no_grad():
        whole = pruned.module(x)
        assert torch.allclose(pruned.module(x[:1]), whole[:1], atol=1e-6)


def test_a_bias_of_scores_is_no_channel() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        positions = m.down(x.mean(3).transpose(1, 2))
        scores = positions @ positions.transpose(1, 2) + m.mask.float()
        found: Tensor = (x.amax(3) @ scores.softmax(-1))[..., None]
        alone = F.scaled_dot_product_attention(positions, positions, x.amin(3).mT)
        return found + x + alone.mT[..., None]

    network = analyse(Net(body), torch.randn(3, 3, 8, 8))
    assert [len(group.units) for group in network.channels.groups] == [12]


def test_layers_in_the_dark_are_exported() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))
    x = torch.randn(3, 5, 16)
    network = analyse(model, x)
    assert {group.name for group in network.channels.groups} >= {"0.layers.0.linear1", "0.layers.1.linear1"}
    plan, small = halved(network)
    assert against_masked(network, plan, small, x) < 1e-5


def test_a_bilinear_layer_makes_channels() -> None:
    def body(m: Any, x: Tensor) -> Any:
        read = x.mean((2, 3))
        return x + m.twice(m.first(read), m.second(read))[..., None, None]

    model, x = Net(body), torch.randn(3, 3, 8, 8)
    model.first, model.second, model.twice = nn.Linear(12, 5), nn.Linear(12, 4), nn.Bilinear(5, 4, 12)
    for graph in traces(model, x):
        network = describe(graph, x)
        assert [group.producers for group in network.channels.groups] == [("stem.0", "twice")]
        assert {item.name for item in network.channels.frozen} == {"first", "second", "tail"}
        assert against_masked(network, *halved(network), x) < 1e-5
    plan = subprune_fx.prune(model, torch.randn(24, 3, 8, 8), keep=0.5).plan
    twice = subprune_fx.apply(plan, model).get_submodule("twice")
    assert isinstance(twice, nn.Bilinear)
    assert twice.out_features == 6


def test_bags_of_embeddings_have_channels() -> None:
    model, words = nn.Sequential(nn.EmbeddingBag(9, 12), nn.Linear(12, 3)), torch.randint(9, (4, 5))
    network = analyse(model, words)
    plan, small = halved(network)
    assert parameters(small) == 9 * 6 + 6 * 3 + 3
    assert against_masked(network, plan, small, words) < 1e-5


def test_parameters_without_elements_are_no_obstacle() -> None:
    class Registers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.registers = nn.Parameter(torch.zeros(1, 0, 8))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.cat([self.registers.expand(x.shape[0], -1, -1), self.first(x)], 1))
            return out

    x = torch.randn(2, 5, 4)
    network = describe(list(traces(Registers(), x))[1], x)
    assert [group.name for group in network.channels.groups] == ["first"]


def test_what_hooks_do_is_seen() -> None:
    model, x = Net(lambda m, x: m.inner(x)), torch.randn(3, 3, 8, 8)
    model.inner.register_forward_hook(lambda _module, _x, y: y.flip(1))
    network = analyse(model, x)
    assert len(network.channels.groups) == 2
    assert against_masked(network, *halved(network), x) < 1e-5


def test_plans_of_parametrised_networks_fit_their_class() -> None:
    """What was computed becomes plain, in the copy only."""
    model, x = Net(BODIES["weight norm"]).eval(), torch.randn(24, 3, 8, 8)
    pruned = subprune_fx.prune(model, x, keep=0.5)
    again = subprune_fx.apply(pruned.plan, model)
    assert difference(again(x), pruned.module(x)) < 1e-5
    assert not hasattr(again.weight_normed, "parametrizations")
    assert hasattr(model.weight_normed, "parametrizations")


@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute_become_plain(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 2)))
    x = torch.randn(24, 4)
    with torch.no_grad():
        model(x)  # steps of a power iteration
    pruned = subprune_fx.prune(model.eval(), x, keep=0.5)
    assert [item.reason for item in pruned.report.frozen] == [OUTPUT]
    network = analyse(model, x)
    assert against_masked(network, *halved(network), x) < 1e-5
    again = subprune_fx.apply(pruned.plan, model)
    assert difference(again(x), pruned.module(x)) < 1e-5
    assert sorted(again.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert "0.weight" not in model.state_dict()
