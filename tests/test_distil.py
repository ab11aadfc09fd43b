"""Distillation: closer to the original, the same structure, and a plan that still tells all."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx import SubpruneError
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


def fitted(inputs: Tensor, seed: int = 0) -> Tensor:
    """What a network that is distilled is pruned with."""
    found = distil.divided(inputs, None, seed)[0]
    assert isinstance(found, Tensor)
    return found


def change(module: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((module(inputs) - network().eval()(inputs)).square().mean())


def test_brings_the_output_closer(inputs: Tensor) -> None:
    model = network().eval()
    plain = subprune_fx.prune(model, fitted(inputs), ratio=3)
    trained = subprune_fx.prune(model, inputs, ratio=3, distil=150)
    unseen = torch.randn(256, 12, generator=torch.Generator().manual_seed(1))
    assert change(trained.module, inputs) < 0.7 * change(plain.module, inputs)
    assert change(trained.module, unseen) < change(plain.module, unseen)
    shapes = [[tuple(p.shape) for p in found.module.parameters()] for found in (plain, trained)]
    assert shapes[0] == shapes[1]
    assert all(p.grad is None for p in trained.module.parameters())


def test_statistics_stay_and_the_same_seed_gives_the_same(inputs: Tensor) -> None:
    first, second = (subprune_fx.prune(network().eval(), inputs, ratio=3, distil=20, seed=3) for _ in range(2))
    assert same(first.plan, second.plan)
    plain = subprune_fx.prune(network().eval(), fitted(inputs, seed=3), ratio=3, seed=3)
    torch.testing.assert_close(dict(first.module.named_buffers()), dict(plain.module.named_buffers()), rtol=0, atol=0)


def test_plan_leads_to_the_trained_network(inputs: Tensor, tmp_path: Path) -> None:
    found = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=20)
    found.plan.save(tmp_path / "a.plan")
    rebuilt = subprune_fx.apply(Plan.load(tmp_path / "a.plan"), network()).eval()
    np.testing.assert_array_equal(rebuilt(inputs).detach(), found.module(inputs).detach())


def test_never_makes_it_worse(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "RATE", 10.0)  # every step throws the weights away
    monkeypatch.setattr(distil, "LOWER", 1.0)
    plain = subprune_fx.prune(network().eval(), fitted(inputs), ratio=3)
    harmed = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=20)
    assert (plain.report.distilled, harmed.report.distilled) == (None, 0)
    assert same(plain.plan, harmed.plan)
    assert torch.equal(plain.module(inputs), harmed.module(inputs))
    assert all(p.grad is None for p in harmed.module.parameters())


def test_steps_that_are_too_large_become_smaller(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "RATE", 10.0)
    plain = subprune_fx.prune(network().eval(), fitted(inputs), ratio=3)
    trained = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=150)
    assert trained.report.distilled
    assert change(trained.module, inputs) < change(plain.module, inputs)


def test_best_weights_on_the_way_are_kept(inputs: Tensor) -> None:
    """With the last step's weights ruined, those before it are kept."""
    pruned, original = subprune_fx.prune(network().eval(), inputs, ratio=3), network().eval()

    def ruin(done: int, steps: int) -> None:
        if done == steps - 1:
            with torch.no_grad():
                for parameter in pruned.module.parameters():
                    parameter.mul_(100)

    before = change(pruned.module, inputs)
    assert 0 < distil.distil(pruned.module, original, inputs[16:], inputs[:16], 100, 0, ruin) < 100
    assert change(pruned.module, inputs) < before


class Seen(nn.Module):
    """A teacher that keeps what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x.flatten(1)


def asked(colours: int) -> tuple[Tensor, Tensor]:
    """Images whose pixels tell sample, row and column, and what the teacher is asked while training on them."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    images = 1000 * torch.arange(40.0).reshape(-1, 1, 1, 1) + 30 * rows + columns
    seen = Seen()
    student = fx.symbolic_trace(nn.Sequential(nn.Conv2d(colours, colours, 1), nn.Flatten()))
    distil.distil(student, seen, images.expand(-1, colours, -1, -1), images[:2].expand(-1, colours, -1, -1), 1, 0)
    return images[:, 0], seen.last[:, -1]


@pytest.mark.parametrize("colours", [1, 3])
def test_images_are_moved(colours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.ones(size))  # of each pair the first alone
    monkeypatch.setattr(distil, "MIRRORED", 0)
    images, moved = asked(colours)
    down, right = moved[:, 8, 12] % 1000 // 30 - 8, moved[:, 8, 12] % 1000 % 30 - 12
    assert set(down.tolist()) == {-2, -1, 0, 1, 2}
    assert set(right.tolist()) == {-3, -2, -1, 0, 1, 2, 3}
    for image, y, x in zip(moved, down.int(), right.int(), strict=True):
        rows, columns = (torch.arange(16) + y).clamp(0, 15), (torch.arange(24) + x).clamp(0, 23)
        assert torch.equal(image, images[int(image[0, 0] // 1000)][rows][:, columns])


def test_and_mixed() -> None:
    images, mixed = asked(3)
    assert not torch.isin(mixed[:, 8, 12], images).all()


@pytest.mark.parametrize("pooled", [True, False])
def test_and_mirrored_where_the_teacher_gives_the_same(pooled: bool) -> None:
    class Teacher(Seen):
        def forward(self, x: Tensor) -> Tensor:
            flat = super().forward(x)
            return x.mean((2, 3)) if pooled else flat

    end = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    student, teacher = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1), end, nn.Flatten())), Teacher()
    images = torch.arange(40.0).reshape(-1, 1, 1, 1) + 10 * torch.arange(24.0).expand(1, 1, 16, 24)
    distil.distil(student, teacher, images, images[:2], 1, 0)
    falls = teacher.last[:, 0, 8, 16] < teacher.last[:, 0, 8, 8]
    assert bool(falls.any()) == pooled


def test_other_inputs_are_mixed() -> None:
    images, mixed = asked(2)
    assert not torch.isin(mixed[:, 0, 0], images[:, 0, 0]).all()
    relative = images[0] - images[0, 0, 0]
    # float32 at 40,000 has steps of 0.004, and a mixture is rounded three times
    torch.testing.assert_close(mixed - mixed[:, :1, :1], relative.expand_as(mixed), rtol=0, atol=0.05)


class Ends(nn.Module):
    """The network with something else at its end."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = network(), kind

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return {"numbers": y[:, 0], "classes": (y, 1000 * y.argmax(1)), "none": y.argmax(1)}[self.kind]


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_a_number_a_sample_and_classes_beside(kind: str, inputs: Tensor) -> None:
    """Classes do not count: with them a loss would see little else, and gain nothing."""
    assert subprune_fx.prune(Ends(kind).eval(), inputs, ratio=3, distil=60).report.distilled


def test_integers_alone_are_refused(inputs: Tensor) -> None:
    with pytest.raises(SubpruneError, match="distil: the network gives integers, which have no gradients"):
        subprune_fx.prune(Ends("none").eval(), inputs, ratio=3, distil=3)


def test_one_input(inputs: Tensor) -> None:
    assert subprune_fx.prune(network().eval(), inputs[:1], ratio=3, distil=3).report.distilled is not None


def test_steps_kept_are_shown(inputs: Tensor) -> None:
    report = subprune_fx.prune(network().eval(), inputs, ratio=3, distil=40).report
    console = Console(width=120, record=True, file=io.StringIO())
    show([report], verbose=False, console=console)
    assert re.search(rf"distillation steps kept +{report.distilled}", console.export_text())
    assert "distillation steps kept" in page([report], "network")


@pytest.mark.parametrize("count", [1, 2, 17])
def test_what_judges_is_not_fitted(count: int) -> None:
    inputs, labels = torch.arange(float(count))[:, None], torch.arange(count)
    shown, classes, held_out = distil.divided(inputs, labels, 5)
    assert isinstance(shown, Tensor)
    assert isinstance(held_out, Tensor)
    assert classes is not None
    assert torch.equal(shown[:, 0].long(), classes)
    assert len(held_out) == -(-count // 8)
    assert sorted({*shown[:, 0].tolist(), *held_out[:, 0].tolist()}) == list(range(count))
    assert len(shown) + len(held_out) == max(count, 2)
