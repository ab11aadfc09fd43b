"""What a budget measures must fit the network, and what it does not measure need not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx import SubpruneError
from subprune_fx.passes import measures
from subprune_fx.passes import trials as module

# More than twice as many as are run at a time.
INPUTS = torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers, and what becomes of (samples, 2, 6, 6) at the end."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.kind = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 2, 1), kind

    def forward(self, x: Tensor) -> Any:
        y = self.last(self.first(x).relu())
        if self.kind == "pictures":
            return y
        scores = y.mean((2, 3))
        if self.kind == "scores":
            return scores
        if self.kind == "selection":
            return scores[x.mean((1, 2, 3)) > 0]
        if self.kind == "flags":
            return scores > 0, scores
        return scores[:, :1] if self.kind == "logit" else scores[:, 0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pictures", {"labels": torch.zeros(150).long()}),
        ("scores", {"labels": torch.arange(150) % 3}),  # of a folder with one more subfolder than there are classes
        ("scores", {"verification": (INPUTS, torch.arange(150) % 3)}),
        ("flags", {}),
        ("selection", {"budget": "error"}),
    ],
)
def test_what_no_budget_asks_for_need_not_fit(kind: str, options: dict[str, Any]) -> None:
    report = subprune_fx.prune(Net(kind).eval(), INPUTS, ratio=2, **options).report
    assert report.achieved >= 2


@pytest.mark.parametrize("kind", ["pictures", "logit", "numbers", "flags"])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_accuracy_budget_wants_class_scores(kind: str, labelled: bool) -> None:
    labels = torch.zeros(150).long() if labelled else None
    with pytest.raises(SubpruneError, match="which is no class score for each sample; use budget output") as caught:
        subprune_fx.prune(Net(kind).eval(), INPUTS, ratio=2, budget="accuracy", labels=labels)
    assert caught.value.where == "budget"


@pytest.mark.parametrize("goal", [{"ratio": 2, "budget": "accuracy"}, {"max_drop": 50}])
def test_labels_of_all_batches_are_checked(goal: dict[str, Any]) -> None:
    """Where there are more inputs to verify on than to calibrate on."""
    y = torch.arange(200) % 2
    y[-1] = 2
    with pytest.raises(SubpruneError, match="labels: some are none of the network's 2 classes"):
        subprune_fx.prune(Net("scores").eval(), INPUTS, verification=(INPUTS.repeat(3, 1, 1, 1)[:200], y), **goal)


@pytest.mark.parametrize("budget", ["accuracy", "output"])
def test_nothing_is_measured_twice(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the ratio is searched for, and several are tried."""
    asked: list[tuple[str, int]] = []

    def spied(network: Any, patches: Any, orders: Any, sizes: Any, *rest: Any) -> Any:
        asked.extend((name, k) for name, ks in sizes.items() for k in ks)
        found = trials(network, patches, orders, sizes, *rest)
        assert {name: len(values) for name, values in found.items()} == {name: len(ks) for name, ks in sizes.items()}
        return found

    trials = module.trials
    monkeypatch.setattr(measures, "trials", spied)
    subprune_fx.prune(Net("scores").eval(), INPUTS, max_drop=10, budget=budget)
    assert asked
    assert len(set(asked)) == len(asked)
