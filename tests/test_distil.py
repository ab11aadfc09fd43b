"""Distillation: closer to the original, the same structure, and a plan that still tells all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.plan import Plan, same


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(128, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def change(module: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((module(inputs) - network().eval()(inputs)).square().mean())


def test_brings_the_output_closer(inputs: Tensor) -> None:
    model = network().eval()
    plain, trained = (subprune_fx.prune(model, inputs, ratio=3, distil=steps) for steps in (0, 150))
    unseen = torch.randn(256, 12, generator=torch.Generator().manual_seed(1))
    assert change(trained.module, inputs) < 0.7 * change(plain.module, inputs)
    assert change(trained.module, unseen) < change(plain.module, unseen)
    shapes = [[tuple(p.shape) for p in found.module.parameters()] for found in (plain, trained)]
    assert shapes[0] == shapes[1]
    assert all(p.grad is None for p in trained.module.parameters())


def test_statistics_stay_and_the_same_seed_gives_the_same(inputs: Tensor) -> None:
    first, second = (subprune_fx.prune(network().eval(), inputs, ratio=3, distil=20, seed=3) for _ in range(2))
    assert same(first.plan, second.plan)
    plain = subprune_fx.prune(network().eval(), inputs, ratio=3)
    torch.testing.assert_close(dict(first.module.named_buffers()), dict(plain.module.named_buffers()), rtol=0, atol=0)


def test_plan_leads_to_the_trained_network(inputs: Tensor, tmp_path: Path) -> None:
    found = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=20)
    found.plan.save(tmp_path / "a.plan")
    rebuilt = subprune_fx.apply(Plan.load(tmp_path / "a.plan"), network()).eval()
    np.testing.assert_array_equal(rebuilt(inputs).detach(), found.module(inputs).detach())
