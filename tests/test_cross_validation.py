"""The ridge that the data ask for: where it comes from, and what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.formats.load import load_model
from subprune_fx.numerics import row_moments
from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.cross_validation import MOST, STEPS
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.row_moments import RowMoments
from subprune_fx.passes import problems
from subprune_fx.passes.problems import LEAST_RIDGE, Problem, Settings, pose

FOLDER = Path(__file__).parents[1] / "examples" / "lenet"
DEFAULTS = Settings()
SHAPES = {"more rows": (60, 12), "fewer rows": (40, 56)}


def drawn(rows: int, columns: int, noise: float, moved: float) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of unequal size, B (rows, d), the original weights W_0 (d, m), and targets of weights near to them."""
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    design, weight = draw(rows, columns) * torch.logspace(0, -1, columns), draw(columns, 3)
    return design, weight, design @ (weight + moved * draw(columns, 3)) + noise * draw(rows, 3) + 2


def posed(
    design: Tensor, weight: Tensor, targets: Tensor, kind: type[Moments | RowMoments], settings: Settings = DEFAULTS
) -> Problem:
    found: Collected
    if kind is Moments:
        found = Moments.zeros(1, design.shape[1], 3)
        found.add(design.mT[None], targets.mT[None])
    else:
        found = row_moments.RowMoments(design.mT[None].float(), 1.0)
        found.add_rows(targets.mT[None])
    return pose(found, weight[None], np.zeros((1, design.shape[1]), dtype=np.int64), settings)


def directly(design: Tensor, weight: Tensor, targets: Tensor, ridge: float) -> float:
    """V of the module's docstring, from the matrix that turns targets into what is fitted to them."""
    rows, columns = design.shape
    b, y = design - design.mean(0), targets - targets.mean(0)
    hat = b @ torch.linalg.solve(b.mT @ b + ridge * torch.eye(columns, dtype=b.dtype), b.mT)
    lacking = y - b @ weight
    return float((lacking - hat @ lacking).square().sum() / (1 - (1 + hat.trace()) / rows) ** 2)


@pytest.mark.parametrize("kind", [Moments, RowMoments])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("noise", [0.03, 1.0])
def test_it_is_the_ridge_of_the_least_error(
    shape: tuple[int, int], noise: float, kind: type[Moments | RowMoments]
) -> None:
    known = drawn(*shape, noise=noise, moved=0.5)
    problem = posed(*known, kind)
    tried = float(problem.ridge) * torch.logspace(0, np.log10(MOST), STEPS, dtype=torch.float64)
    errors = [directly(*known, ridge) for ridge in tried.tolist()]
    found = problem.cross_validated(shape[0])
    torch.testing.assert_close(found.ridge[0], tried[int(np.argmin(errors))], rtol=1e-6, atol=0)
    settings = Settings(ridge=LEAST_RIDGE * float(found.ridge / problem.ridge))
    torch.testing.assert_close(found.solution(), posed(*known, kind, settings).solution(), rtol=1e-9, atol=1e-9)


def test_noise_leaves_the_weights_and_a_change_is_followed() -> None:
    shape = SHAPES["more rows"]
    noise, change = (posed(*drawn(*shape, *how), Moments).cross_validated(60) for how in ((1.0, 0.0), (1e-4, 1.0)))
    assert float(noise.ridge) > 100 * float(change.ridge)


class Read(nn.Module):
    """What a convolution and what a linear layer read, one row a sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).mean((2, 3)))
        return y


def test_it_is_used_where_samples_are_rows_and_helps_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "MANY", 1)  # so that it begins with the same ridge
    model, inputs = Read().eval(), torch.randn(72, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    others = torch.randn(512, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    chosen, fixed = (subprune_fx.prune(model, inputs, keep=0.6, ridge=ridge) for ridge in (None, LEAST_RIDGE))
    differ = {name for name, value in chosen.plan.values.items() if not torch.equal(value, fixed.plan.values[name])}
    assert differ == {"head.weight", "head.bias"}
    with torch.no_grad():
        errors = [(model(others) - pruned.module(others)).square().mean() for pruned in (chosen, fixed)]
    assert errors[0] < errors[1]


def test_with_few_inputs_it_begins_with_more() -> None:
    assert [Settings(samples=n).pull for n in (1, 64, 256, 512, 10_000)] == [0.064, 0.064, 0.004, 0.001, 0.001]
    assert Settings(samples=64, ridge=0.002).pull == 0.002
    network = load_model(FOLDER / "lenet_mnist.pt", arch=f"{FOLDER / 'lenet.py'}:LeNet").module
    digits, shown = (np.load(FOLDER / name) for name in ("calibration.npz", "evaluation.npz"))
    right = {None: 0.0, LEAST_RIDGE: 0.0}
    for start in range(0, 256, 64):  # one set of so few says little
        for ridge in right:
            small = subprune_fx.prune(network, digits["x"][start : start + 64], ratio=4, ridge=ridge).module
            right[ridge] += float((small(torch.from_numpy(shown["x"])).argmax(1).numpy() == shown["y"]).mean()) / 4
    assert right[None] > right[LEAST_RIDGE] + 0.005, right
