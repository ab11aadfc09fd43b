"""Distillation: closer to the original, the same structure, and a plan that still tells all."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import subprune_fx
from subprune_fx.cli.table import show
from subprune_fx.formats.page import page
from subprune_fx.passes import distil
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


def test_never_makes_it_worse(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "RATE", 10.0)  # every step throws the weights away
    plain, harmed = (subprune_fx.prune(network().eval(), inputs, ratio=3, distil=steps) for steps in (0, 20))
    assert (plain.report.distilled, harmed.report.distilled) == (None, 0)
    assert same(plain.plan, harmed.plan)
    assert torch.equal(plain.module(inputs), harmed.module(inputs))
    assert all(p.grad is None for p in harmed.module.parameters())


def test_best_weights_on_the_way_are_kept(inputs: Tensor) -> None:
    """With the last step's weights ruined, those before it are kept."""
    pruned, original = subprune_fx.prune(network().eval(), inputs, ratio=3), network().eval()

    def ruin(done: int, steps: int) -> None:
        if done == steps - 1:
            with torch.no_grad():
                for parameter in pruned.module.parameters():
                    parameter.mul_(100)

    before = change(pruned.module, inputs)
    assert 0 < distil.distil(pruned.module, original, inputs, 100, 0, ruin) < 100
    assert change(pruned.module, inputs) < before


def test_one_input(inputs: Tensor) -> None:
    assert subprune_fx.prune(network().eval(), inputs[:1], ratio=3, distil=3).report.distilled is not None


def test_steps_kept_are_shown(inputs: Tensor) -> None:
    report = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=40).report
    console = Console(width=120, record=True, file=io.StringIO())
    show([report], verbose=False, console=console)
    assert re.search(rf"steps of distillation kept +{report.distilled}", console.export_text())
    assert "steps of distillation kept" in page([report], "network")
