"""Goals that are met by measuring: the largest ratio within a loss, from few measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import subprune_fx
from subprune_fx import SubpruneError
from subprune_fx.passes.search import ATTEMPTS, FINE, bracket


@given(st.floats(1.06, 500), st.floats(0.3, 4), st.floats(1.1, 1000), st.floats(1.1, 100))
def test_a_growing_quantity_is_bracketed(where: float, power: float, most: float, start: float) -> None:
    """The limit lies between the two steps, which are close, unless the largest ratio is still below it."""
    found = bracket(lambda r: math.log(r) ** power, math.log(where) ** power, origin=0.0, start=start, most=most)
    low = 1.0 if found.below is None else found.below.ratio
    assert len(found.tried) <= ATTEMPTS
    assert low <= where * (1 + 1e-12)
    if where >= most:
        assert low == most
    else:
        assert found.above is not None
        assert found.above.ratio >= where
        assert len(found.tried) == ATTEMPTS or found.above.ratio < low * FINE


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=ATTEMPTS, max_size=ATTEMPTS))
def test_whatever_is_measured_it_ends_with_what_it_saw(values: list[float]) -> None:
    left = iter(values)
    found = bracket(lambda _: next(left), 1.0, origin=0.0, start=2.0, most=64.0)
    assert found.below is None or (found.below in found.tried and found.below.value <= 1)
    assert found.above is None or (found.above in found.tried and found.above.value > 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 32), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(32, 5, bias=False)).eval()


def agreement(left: nn.Module, right: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((left(x).argmax(1) == right(x).argmax(1)).double().mean())


def test_the_loss_stays_below_the_limit_on_inputs_held_out() -> None:
    x = torch.randn(200, 1, 8, 8)
    mild, bold = (subprune_fx.prune(network(), x, max_drop=points) for points in (8.0, 30.0))
    for pruned, points in ((mild, 8.0), (bold, 30.0)):
        drop = pruned.report.drop
        assert drop is not None
        assert drop <= points
        assert drop == pytest.approx(100 * (1 - agreement(network(), pruned.module, x[3::4])), abs=1e-6)
        assert pruned.report.achieved >= pruned.report.ratio > 1
        assert dict(pruned.report.settings)["calibration inputs"] == "150"
        refused = [step for step in pruned.report.searched if step.value > points]
        assert min(step.ratio for step in refused) < pruned.report.ratio * FINE
    assert bold.report.ratio > mild.report.ratio


def test_labels_to_verify_on_are_measured_on_and_all_inputs_used() -> None:
    x, other = torch.randn(96, 1, 8, 8), torch.randn(100, 1, 8, 8)
    with torch.no_grad():
        y = network()(other).argmax(1)
    y[::2] = (y[::2] + 1) % 5  # the original is right half of the time
    pruned = subprune_fx.prune(network(), x, max_drop=5.0, verification=(other, y))
    assert dict(pruned.report.settings)["calibration inputs"] == "96"
    with torch.no_grad():
        right = (pruned.module(other).argmax(1) == y).double().mean()
    assert pruned.report.drop is not None
    assert pruned.report.drop == pytest.approx(100 * (0.5 - float(right)), abs=1e-6)
    assert pruned.report.drop <= 5


def test_everything_is_within_reach_of_a_large_limit() -> None:
    pruned = subprune_fx.prune(network(), torch.randn(40, 1, 8, 8), max_drop=99.9)
    assert all(row.kept == 1 for row in pruned.report.groups)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_drop": 0}, "max_drop 0 is not between 0 and 100"),
        ({"max_drop": math.nan}, "max_drop nan is not between"),
        ({"max_drop": 1e-9}, "no smaller network stays within a drop of 1e-09 points"),
        ({"max_drop": 1, "ratio": 2}, "exactly one of ratio, keep and max_drop"),
        ({}, "exactly one of ratio, keep and max_drop"),
    ],
)
def test_goals_out_of_reach_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(SubpruneError, match=says):
        subprune_fx.prune(network(), torch.randn(400, 1, 8, 8), select="random", reweight=False, **options)  # type: ignore[arg-type]


def test_few_inputs_and_no_classes_are_refused() -> None:
    with pytest.raises(SubpruneError, match="3 inputs are too few to measure on every 4th"):
        subprune_fx.prune(network(), torch.randn(3, 1, 8, 8), max_drop=5)
    images = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3)).eval()
    with pytest.raises(SubpruneError, match=r"shape \(.*\), which is no class score"):
        subprune_fx.prune(images, torch.randn(40, 1, 8, 8), max_drop=5)


@pytest.mark.parametrize("target", ["params", "flops"])
def test_one_goal_out_of_reach_is_said_before_the_first(target: str) -> None:
    x, seen = torch.randn(64, 1, 8, 8), set()
    with pytest.raises(SubpruneError, match=r"ratio 5000 cannot be reached: with as few .*; ask for at most \d"):
        next(
            subprune_fx.prune_each(
                *(network(), x), ratios=[2, 5000], target=target, progress=lambda stage, _, __: seen.add(stage)
            )
        )
    assert "sweep" not in seen


def test_several_goals_share_one_calibration() -> None:
    x = torch.randn(64, 1, 8, 8)
    both = [*subprune_fx.prune_each(network(), x, ratios=[2, 4])]
    for ratio, pruned in zip((2, 4), both, strict=True):
        alone = subprune_fx.prune(network(), x, ratio=ratio)
        for name, value in alone.module.state_dict().items():
            np.testing.assert_array_equal(value, pruned.module.state_dict()[name])
