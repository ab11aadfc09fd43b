"""Nothing is lost where nothing need be: duplicated channels fold into their twins exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from support import sweep_of
from torch import Tensor, nn

from subprune_fx.option_values import VARIANTS
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply

TOLERANCE = 1e-7
"""Of float64 networks; Gram matrices square the condition number, which leaves half of the 16 digits."""


def twins(*layers: nn.Module) -> None:
    """Make every odd output channel a copy of the even one before it."""
    with torch.no_grad():
        for layer in layers:
            for tensor in (*layer.parameters(), *layer.buffers()):
                outputs = (
                    tensor.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) and tensor.ndim > 1 else tensor
                )
                if outputs.ndim:
                    outputs[1::2] = outputs[::2].clone()


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm that has seen something."""
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor, low, high in (
            (layer.weight, 0.5, 1.5),
            (layer.bias, 0.0, 1.0),
            (layer.running_mean, -0.5, 0.5),
            (layer.running_var, 0.5, 2.0),
        ):
            assert tensor is not None
            tensor.uniform_(low, high)
    return layer


def chain() -> nn.Module:
    layers = (
        *(nn.Conv2d(2, 6, 5, padding=2), norm(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 5, stride=2, padding=2, bias=False), norm(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, 10), nn.GELU(), nn.Linear(10, 4)),
    )
    twins(*layers[:-1])
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two blocks on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = norm(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, 1)
        self.last = nn.Linear(6, 4)
        twins(self.stem, self.first, self.norm, self.second, self.third)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.norm(self.first(x)))))
        x = F.relu(x + self.third(x))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


class Concat(nn.Module):
    """A dense block: later layers read all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.second = nn.Conv2d(10, 4, 3, padding=1)
        self.last = nn.Linear(14 * 4, 4)
        twins(self.stem, self.first, self.second)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([x, self.first(x).relu()], 1)
        x = torch.cat([x, self.second(x).relu()], 1)
        out: Tensor = self.last(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return out


def grouped() -> nn.Module:
    layers = (
        *(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), norm(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )
    twins(*layers[:-1])
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "residual": Residual,
    "concat": Concat,
    "grouped": grouped,
}


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_duplicated_channels_cost_nothing(name: str, variant: str, intercept: bool) -> None:
    net = NETWORKS[name]().double().eval()
    x = torch.randn(48, 2, 12, 12, dtype=torch.float64)
    settings = Settings(intercept=intercept, ridge=0.0)
    compiler = Compiler(net, x, Options(variant=variant, settings=settings))
    keep = {group.name: len(group.units) // 2 for group in compiler.network.channels.groups}
    plan, outputs = sweep_of(compiler, keep, late=True).run([x])
    for decision in plan.decisions:
        assert decision.error < TOLERANCE, decision
    smaller = apply(plan, compiler.network.graph_module)
    other = torch.randn(8, 2, 12, 12, dtype=torch.float64)
    assert sum(p.numel() for p in smaller.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(outputs[0], net(x), rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(smaller(other), net(other), rtol=TOLERANCE, atol=TOLERANCE)
