"""Single layers that `speed.py` times: greedy alone, a large transformer block, and what cost grows with."""

from __future__ import annotations

import functools
import math
import resource
import time
from collections.abc import Callable

import torch
from command_time import RSS_UNIT
from torch import Tensor, nn

import subprune_fx
from subprune_fx.numerics.blocks import Block
from subprune_fx.numerics.greedy import greedy

Values = dict[str, float]


@functools.cache
def product_speed(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-adds a second of a matrix product; the best of 3."""
    one = torch.randn(size, size, dtype=dtype)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - start)
    return size**3 / min(times)


def greedy_alone(units: int, r: int, m: int, samples: int = 512) -> Values:
    """All k of one layer, from its normal equations; `paper` is its Prop. B.7's count at a product's measured speed."""
    generator = torch.Generator().manual_seed(0)
    d = units * r
    x = torch.randn(2 * d, d, generator=generator)
    weight = torch.randn(d, m, dtype=torch.float64, generator=generator)
    gram = (x.mT @ x).double()
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    cross = gram @ weight
    block = Block(gram, cross, torch.arange(d) // r, float((weight * cross).sum()))
    start = time.perf_counter()
    greedy([block], units)
    seconds = time.perf_counter() - start
    counted = sum(d * (m + samples + k * r) * r for k in range(units))
    return {"seconds": seconds, "paper": counted / product_speed(torch.float64)}


def pruning(network: nn.Module, samples: int, shape: tuple[int, ...]) -> Values:
    """`subprune_fx.prune`, half of every layer, without budget."""
    _warm()
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    subprune_fx.prune(network.eval(), x, keep=0.5)
    return {"seconds": time.perf_counter() - start}


class _Gated(nn.Module):
    """A residual stream with one gated block, as in Llama: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(64, width), nn.Linear(width, 64)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        found: Tensor = self.head(x + self.down(nn.functional.silu(self.gate(x)) * self.up(x)))
        return found


def gated(width: int, hidden: int, samples: int = 128, tokens: int = 128) -> Values:
    """`subprune_fx.prune` of such a network, half of its channels, and its forward pass; in a process of its own."""
    torch.manual_seed(0)
    network, x = _Gated(width, hidden).eval(), torch.randn(samples, tokens, 64)
    start = time.perf_counter()
    with torch.no_grad():
        for part in torch.split(x, 32):
            network(part)
    forward = time.perf_counter() - start
    start = time.perf_counter()
    subprune_fx.prune(network, x, keep=0.5)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    return {"seconds": seconds, "forward": forward, "MB": memory / 1e6}


@functools.cache
def _warm() -> None:
    """Import what pruning imports on first use."""
    subprune_fx.prune(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(8, 4), keep=0.5)


def dense(n: int, m: int = 64, samples: int = 4096) -> Values:
    """A hidden layer of n neurons that m outputs read."""
    torch.manual_seed(0)
    return pruning(nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, m), nn.ReLU()), samples, (64,))


def convolutions(depth: int = 1, kernel: int = 3, samples: int = 128) -> Values:
    """A chain of convolutions of 64 channels on 12 x 12 positions, each with as many columns as 64 kernel ** 2."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(64, 64, kernel, padding=kernel // 2), nn.ReLU()]
    return pruning(nn.Sequential(*layers), samples, (3, 12, 12))


CURVES: dict[str, tuple[Callable[[int], Values], tuple[int, ...]]] = {
    "units": (dense, (128, 256, 512, 1024, 2048)),
    "columns": (lambda d: convolutions(kernel=math.isqrt(d // 64)), (64, 576, 1600, 3136)),
    "outputs": (lambda m: dense(512, m), (64, 256, 1024, 4096)),
    "samples": (lambda samples: dense(256, samples=samples), (1024, 4096, 16384, 65536)),
    "depth": (convolutions, (2, 4, 8, 16, 32)),
}
"""What cost is measured against, with its values."""
