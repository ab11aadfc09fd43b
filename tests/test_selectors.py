"""Every selector agrees with a direct, slow computation; every one works from the library, with and without labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.cli import options
from subprune_fx.errors import SubpruneError
from subprune_fx.numerics.greedy import Block
from subprune_fx.numerics.prefixes import kept_errors, reweighted_errors
from subprune_fx.selectors import LABELLED, SELECTORS, Need


def net() -> nn.Sequential:
    """Two prunable groups: 6 channels into a flatten (4 positions each), 8 neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def inputs(samples: int = 32) -> Tensor:
    return torch.randn(samples, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def problem(units: int, columns: int, targets: int) -> tuple[Tensor, Tensor, Tensor, Block]:
    """B, Y, W and the block made of them; unit i has columns i, i + units, ..."""
    b = torch.randn(40, units * columns, dtype=torch.float64)
    w = torch.randn(units * columns, targets, dtype=torch.float64)
    y = b @ w + 0.1 * torch.randn(40, targets, dtype=torch.float64)
    unit = torch.arange(units * columns) % units
    return b, y, w, Block(b.mT @ b, b.mT @ y, unit, float(y.square().sum()), 0.5)


@pytest.mark.parametrize("columns", [1, 3])
def test_prefix_errors_are_those_of_least_squares_and_of_plain_cuts(columns: int) -> None:
    b, y, w, block = problem(5, columns, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    solved = reweighted_errors([block, block], order)
    kept = kept_errors([block, block], [w, w], order)
    for k in range(6):
        chosen = torch.isin(block.unit, order[:k])
        x = b[:, chosen]
        best = y - x @ torch.linalg.lstsq(x, y).solution if k else y
        plain = y - x @ w[chosen]
        torch.testing.assert_close(solved[k], best.square().sum())
        torch.testing.assert_close(kept[k], plain.square().sum())


def kept_by_layer(module: nn.Module, select: str, ratio: float = 2, **more: object) -> dict[str, list[int]]:
    arguments = {"labels": torch.arange(32) % 3, "seed": 3, "budget": "uniform", **more}
    pruned = subprune_fx.prune(module, inputs(), ratio=ratio, select=select, **arguments)  # type: ignore[arg-type]
    return {decision.group: list(decision.kept) for decision in pruned.plan.decisions}


def test_layerweightnorm_keeps_the_largest_columns_of_the_next_layer() -> None:
    module = net()
    linear, last = (module.state_dict()[name] for name in ("3.weight", "5.weight"))
    conv_scores = [float(linear[:, 4 * i : 4 * i + 4].abs().sum()) for i in range(6)]
    linear_scores = [float(last[:, i].abs().sum()) for i in range(8)]
    for name, scores in (("0", conv_scores), ("3", linear_scores)):
        kept = kept_by_layer(module, "layerweightnorm")[name]
        assert kept == sorted(np.argsort(scores)[::-1][: len(kept)].tolist())


def test_weightnorm_ranks_all_layers_by_weights_per_connection() -> None:
    module = net()
    scores = {("0", i): float(module.state_dict()["3.weight"][:, 4 * i : 4 * i + 4].abs().mean()) for i in range(6)}
    scores |= {("3", i): float(module.state_dict()["5.weight"][:, i].abs().mean()) for i in range(8)}
    kept = kept_by_layer(module, "weightnorm", budget=None, reweight=False)
    chosen = {(name, i) for name, units in kept.items() for i in units}
    alone = {name for name, units in kept.items() if len(units) == 1}  # at least one a layer, however bad
    best_dropped = max(score for unit, score in scores.items() if unit not in chosen)
    assert all(scores[unit] >= best_dropped for unit in chosen if unit[0] not in alone)


@pytest.mark.parametrize("select", ["random", "layerrandom", "stochastic"])
def test_random_selectors_follow_the_seed(select: str) -> None:
    module = net()
    found = [kept_by_layer(module, select, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert any(other != found[0] for other in found[2:])


@pytest.mark.parametrize(
    ("select", "reweight", "target"), list(itertools.product(SELECTORS, [True, False], ["default", "own"]))
)
def test_every_selector_meets_the_ratio(select: str, reweight: bool, target: str) -> None:
    budget = "uniform" if target == "default" else None
    pruned = subprune_fx.prune(
        net(), inputs(), ratio=2, select=select, reweight=reweight, budget=budget, labels=torch.arange(32) % 3
    )
    assert pruned.report.achieved >= 2
    assert pruned.module(inputs(2)).shape == (2, 3)


def test_the_command_line_knows_every_selector() -> None:
    assert tuple(SELECTORS) == options.SELECTORS


@pytest.mark.parametrize("select", [name for name, row in SELECTORS.items() if row.needs & LABELLED])
def test_labels_are_asked_for(select: str) -> None:
    with pytest.raises(SubpruneError, match=f"selector {select} needs the class of each calibration input"):
        subprune_fx.prune(net(), inputs(), ratio=2, select=select)


def test_an_unknown_selector_is_refused() -> None:
    with pytest.raises(SubpruneError, match="no selector 'best'; use one of inchange"):
        subprune_fx.prune(net(), inputs(), ratio=2, select="best")


def test_ratios_share_a_calibration_and_change_nothing() -> None:
    module = net()
    x = inputs()
    each = subprune_fx.prune_each(module, x, ratios=(2, 3), select="stochastic", seed=5)
    for ratio, shared in zip((2, 3), each, strict=True):
        alone = subprune_fx.prune(module, x, ratio=ratio, select="stochastic", seed=5)
        assert shared.plan.decisions == alone.plan.decisions


def test_moments_are_taken_only_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from subprune_fx.passes import pipeline  # noqa: PLC0415

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pipeline, "calibrate", refuse)
    for name, row in SELECTORS.items():
        if Need.MOMENTS not in row.needs:
            kept_by_layer(net(), name, reweight=False)
