"""Layers that are called at several places: one weight, fitted to all of their calls."""

import pytest
import torch
from test_onnx import exported
from torch import Tensor, nn
from torch.nn import functional

import subprune_fx
from subprune_fx.formats.onnx_file import load_onnx
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_static import resolve_batch
from subprune_fx.numerics.thinned_reader import ThinnedReader
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.thin import thinned

FRAMES = 3


class Encoder(nn.Module):
    """Two layers for every frame, and one that reads all of them."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 16), nn.Linear(16 * FRAMES, 4)
        self.at_once = at_once

    def frame(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        frames = self.frame(x).flatten(1) if self.at_once else [self.frame(x[:, k]) for k in range(FRAMES)]
        found: Tensor = self.c(frames if isinstance(frames, Tensor) else torch.cat(frames, -1))
        return found


class Head(nn.Module):
    """A detector's head: the same convolutions on maps of two sizes."""

    def __init__(self, *, biased: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1)
        self.first, self.last = nn.Conv2d(12, 16, 3, padding=1, bias=biased), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        large, small = (self.last(torch.relu(self.first(part))) for part in (x, functional.avg_pool2d(x, 2)))
        return large, small


class Cell(nn.Module):
    """A cell that is called at every step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(6, 24), nn.Linear(24, 3)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state, made = None, x
        for k in range(x.shape[1]):
            state = self.cell(x[:, k], state)
            made = state[0] if isinstance(state, tuple) else state
        found: Tensor = self.out(made)
        return found


def loss(wanted: Tensor, found: Tensor) -> float:
    """Root mean square of the difference, relative to the deviation."""
    return float(((wanted - found).detach().square().mean() / wanted.detach().var(0).mean()).sqrt())


def low_rank(*shape: int, seed: int) -> Tensor:
    """Inputs of which a few numbers are the cause."""
    size = shape[-1]
    mix = torch.randn(size, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        4, size, generator=torch.Generator().manual_seed(1)
    )
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) @ mix / size


def test_a_layer_called_for_each_frame_is_pruned_as_one_called_for_all() -> None:
    x, fresh = low_rank(256, FRAMES, 12, seed=2), low_rank(128, FRAMES, 12, seed=3)
    lost = []
    for at_once in (True, False):
        torch.manual_seed(0)
        network = Encoder(at_once=at_once).eval()
        small, _, report = subprune_fx.prune(network, x, keep=0.5, only=["a"])
        lost.append(loss(network(fresh), small(fresh)))
        assert all(0 <= group.error <= 1 for group in report.groups)
    assert lost[1] == pytest.approx(lost[0], rel=0.05)  # that is refitted to what the ReLU lets through as well
    plain = subprune_fx.prune(network, x, keep=0.5, only=["a"], reweight=False)[0]
    assert lost[1] < 0.5 * loss(network(fresh), plain(fresh))


@pytest.mark.parametrize("biased", [True, False], ids=["biased", "no bias"])
@pytest.mark.parametrize("dynamo", [None, False, True], ids=["torch", "onnx", "onnx by dynamo"])
def test_duplicated_channels_of_a_shared_head_are_pruned_without_loss(*, biased: bool, dynamo: bool | None) -> None:
    torch.manual_seed(0)
    network = Head(biased=biased).eval()
    with torch.no_grad():
        for layer in (network.stem, network.first):
            half = len(layer.weight) // 2
            for parameter in layer.parameters():
                parameter[half:] = parameter[:half]
    x, fresh = torch.randn(24, 2, 12, 12), torch.randn(5, 2, 12, 12)
    module: nn.Module = network
    if dynamo is not None:
        module = resolve_batch(load_onnx(exported(network, x[:2], dynamo=dynamo, opset=18), "head.onnx").module, x)
    small, _, report = subprune_fx.prune(module, x, keep=0.5, ridge=1e-9, align=1)
    assert [group.kept for group in report.groups] == [6, 8]
    for wanted, found in zip(network(fresh), small(fresh), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.detach().abs().max()))


def test_calls_on_maps_of_several_sizes_are_looked_at_alike() -> None:
    found = analyse(Head().eval(), torch.randn(2, 2, 64, 64))
    few = thinned(found, 512, 64)
    assert len(set(found.joint.values())) == 2  # the two layers of the head
    assert found.joint == few.joint
    assert all(isinstance(few.readers[name], ThinnedReader) for name in few.joint)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_cell_that_goes_through_a_sequence_is_refitted(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    network = Cell(kind).eval()
    x, fresh = torch.randn(256, 5, 6), torch.randn(128, 5, 6)
    lost = [
        loss(network(fresh), subprune_fx.prune(network, x, keep=0.75, only=["cell"], reweight=reweight)[0](fresh))
        for reweight in (True, False)
    ]
    assert lost[0] < 0.7 * lost[1]


def test_a_weight_that_something_else_reads_too_keeps_its_values() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.inner(self.words(x)), self.words.weight)

    found: FxNetwork = analyse(Tied().eval(), torch.randint(20, (2, 5)))
    assert not found.joint
