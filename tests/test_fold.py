"""BatchNorm merged into the convolutions before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from subprune_fx.passes.fold import folded


def settled(net: nn.Module) -> nn.Module:
    """In eval mode, with statistics and scales as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            assert layer.running_var is not None
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2.0, generator=generator)
                nn.init.normal_(layer.bias, generator=generator)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())


class Shared(nn.Module):
    """One convolution in front of two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Both are called on the same layer's outputs."""
        found: Tensor = self.one(self.conv(x)) + self.two(self.conv(x + 1))
        return found


class Twice(nn.Module):
    """A convolution whose output is read past the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs in a dict."""
        y = self.conv(x)
        return {"both": self.norm(y) + y}


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[0].register_forward_hook(lambda _module, _args, y: 2 * y)
    return net


MERGED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), (8,)),
    "2d without bias": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (8, 8)),
    "3d, grouped": (lambda: nn.Sequential(nn.Conv3d(3, 6, 2, groups=3), nn.BatchNorm3d(6)), (4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4)), (5, 5)),
    "without scale": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (8, 8)),
}


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("traced", [False, True])
def test_merged_networks_compute_the_same(name: str, traced: bool) -> None:
    make, size = MERGED[name]
    net = settled(make())
    given = fx.symbolic_trace(net) if traced else net
    before = {key: value.clone() for key, value in given.state_dict().items()}
    found = folded(given)
    x = torch.randn(2, 3, *size)
    assert norms(found) == 0
    torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-5)  # float32: other order of products
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())


KEPT: dict[str, Callable[[], nn.Module]] = {
    "called twice": Shared,
    "read twice": Twice,
    "hooks": hooked,
    "batch statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "grouped and transposed": lambda: nn.Sequential(nn.ConvTranspose1d(3, 6, 3, groups=3), nn.BatchNorm1d(6)),
    "parametrised": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_merged_stays(name: str) -> None:
    net = settled(KEPT[name]())
    assert folded(net) is net


def test_outputs_in_a_dict_stay_in_it() -> None:
    class Named(Twice):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.norm(self.conv(x))}

    net, x = settled(Named()), torch.randn(2, 3, 8, 8)
    found = folded(fx.symbolic_trace(net))
    assert norms(found) == 0
    torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_traced_is_left_alone() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    net = Branch().eval()
    assert folded(net) is net
