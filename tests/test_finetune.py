"""Fine-tuning of what comes out: training mode, gradients, BatchNorm statistics, state dicts."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.passes.proof import difference


class Net(nn.Module):
    """Everything that behaves differently in training: BatchNorm, dropout; a frozen layer, a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.wide = nn.Conv2d(16, 12, 1)
        self.mix = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)
        self.stem[0].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = (x + self.wide(self.deep(x))).mean((2, 3))
        return self.head(self.mix(self.mix(x).relu()).relu())


class Untraceable(Net):
    """The same where only torch.export gets through."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if len(x.shape) == 4 and int(x.shape[2]) > 2 else x


@pytest.fixture(params=[Net, Untraceable])
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return subprune_fx.prune(request.param(), torch.randn(48, 3, 8, 8), keep=0.5).module


def train(module: nn.Module, steps: int = 80) -> list[float]:
    y = torch.arange(64) % 4
    x = torch.randn(64, 3, 8, 8) + torch.linspace(-1, 1, 4)[y].reshape(-1, 1, 1, 1)
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(x), y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_comes_out_in_eval_mode_with_gradients_as_before(small: nn.Module) -> None:
    assert not any(part.training for part in small.modules())
    wanted = {name: parameter.requires_grad for name, parameter in Net().named_parameters()}
    found = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    assert {name: found[name] for name in wanted} == wanted
    assert all(parameter.is_leaf and parameter.grad is None for parameter in small.parameters())


def test_training_lowers_the_loss_and_moves_every_parameter(small: nn.Module) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    losses = train(small)
    assert losses[-1] < losses[0] / 2
    after = small.state_dict()
    still = [name for name, value in before.items() if value.is_floating_point() and torch.equal(value, after[name])]
    assert still == ["stem.0.weight"]


def test_batch_norm_and_dropout_follow_the_mode(small: nn.Module) -> None:
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        small.eval()
        assert torch.equal(small(x), small(x))
        small.train()
        assert not torch.equal(small(x), small(x))
        means = {name: value.clone() for name, value in small.named_buffers() if name.endswith("running_mean")}
        small(x + 3)
        assert all(not torch.equal(means[name], dict(small.named_buffers())[name]) for name in means)


def test_state_dict_round_trip(small: nn.Module) -> None:
    fresh = copy.deepcopy(small)
    small.train()
    train(small, steps=3)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert difference(fresh.eval()(x), small.eval()(x)) == 0


def test_pruned_again_after_training(small: nn.Module) -> None:
    small.train()
    train(small, steps=3)
    again = subprune_fx.prune(small, torch.randn(48, 3, 8, 8), keep=0.5)
    assert again.report.achieved > 1.5
    assert small.training  # the user's module is left as it was
    again.module.train()
    assert train(again.module, steps=2)
