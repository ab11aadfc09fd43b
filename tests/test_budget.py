"""How much is kept: sizes are those of the network that is really written, and every rule meets the ratio."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import parameters
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from subprune_fx import SubpruneError
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.passes import budget_accuracy as module
from subprune_fx.passes import budget_output
from subprune_fx.passes.budget import Budget, Sizes, fraction
from subprune_fx.passes.budget_accuracy import ALPHAS, bounds
from subprune_fx.passes.budget_output import PROBES
from subprune_fx.passes.budgets import BUDGETS, allot
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.size import TARGETS, SizeModel
from subprune_fx.passes.sweep import Sweep
from subprune_fx.selectors import Keep, Ranking

Curve = NDArray[np.float64]


class Wild(nn.Module):
    """Everything that makes counting hard: concat, split, groups, depthwise, shared layers, positional parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.position = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depth = nn.Conv2d(12, 24, 3, padding=1, groups=12, bias=False)
        self.left, self.right = nn.Conv2d(10, 6, 1), nn.Conv2d(14, 8, 1, bias=False)
        self.twice = nn.Conv2d(14, 14, 1, bias=False)
        self.up = nn.ConvTranspose2d(14, 4, 2, stride=2)
        self.hidden, self.last = nn.Linear((4 + 8) * 4, 9, bias=False), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)) + self.position)
        y = self.depth(F.relu(self.grouped(x)))
        a, b = torch.split(y, [10, 14], 1)
        y = torch.cat([self.left(a), self.right(b)], 1)
        y = self.up(self.twice(F.relu(self.twice(y))))
        y = torch.cat([F.adaptive_avg_pool2d(y, 2), F.adaptive_avg_pool2d(x, 2)], 1).flatten(1)
        out: Tensor = self.last(F.relu(self.hidden(y)))
        return out


@pytest.fixture(scope="module")
def wild() -> FxNetwork:
    torch.manual_seed(0)
    return analyse(Wild().eval(), torch.randn(2, 2, 6, 6))


def orders_of(network: FxNetwork, seed: int) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.permutation(len(group.units)) for group in network.channels.groups}


def written(network: FxNetwork, orders: Mapping[str, NDArray[np.int64]], keep: Keep, *, reweight: bool) -> nn.Module:
    """The network with the first `keep` units of each order."""
    x = torch.randn(8, 2, 6, 6)
    nested = {name: Ranking(torch.from_numpy(order)) for name, order in orders.items()}
    sweep = Sweep(network, keep, nested, variant="asym", settings=Settings(), reweight=reweight)
    plan, _ = sweep.run([x])
    return apply(plan, network.graph_module)


def keeps(network: FxNetwork, seed: int) -> Keep:
    rng = np.random.default_rng(seed)
    return {group.name: int(rng.integers(1, len(group.units) + 1)) for group in network.channels.groups}


@given(seed=st.integers(0, 2**16))
@examples(max_examples=15)
def test_parameters_are_those_of_the_network_that_is_written(wild: FxNetwork, seed: int) -> None:
    orders, keep = orders_of(wild, seed), keeps(wild, seed + 1)
    example = torch.randn(1, 2, 6, 6)
    model = TARGETS["params"](wild, orders, example, intercepts=False)
    assert model.total == parameters(wild.graph_module)
    assert model.of(model.units) == model.total
    assert model.of(keep) == parameters(written(wild, orders, keep, reweight=False))


@given(seed=st.integers(0, 2**16))
@examples(max_examples=10)
def test_new_biases_are_counted(wild: FxNetwork, seed: int) -> None:
    """At least: a layer whose input is what it was gets none."""
    orders, keep = orders_of(wild, seed), keeps(wild, seed + 1)
    model = TARGETS["params"](wild, orders, torch.randn(1, 2, 6, 6), intercepts=True)
    module = written(wild, orders, keep, reweight=True)
    plain = TARGETS["params"](wild, orders, torch.randn(1, 2, 6, 6), intercepts=False)
    assert plain.of(keep) <= parameters(module) <= model.of(keep)


@given(seed=st.integers(0, 2**16))
@examples(max_examples=10)
def test_multiply_adds_are_those_of_the_network_that_is_written(wild: FxNetwork, seed: int) -> None:
    orders, keep = orders_of(wild, seed), keeps(wild, seed + 1)
    example = torch.randn(2, 2, 6, 6)
    model = TARGETS["flops"](wild, orders, example, intercepts=False)
    module = written(wild, orders, keep, reweight=False)
    assert model.of(keep) * 2 == counted(module, example)
    assert model.total * 2 == counted(wild.graph_module, example)


def counted(module: nn.Module, example: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(example)
    return int(counter.get_total_flops()) // len(example)


@given(seed=st.integers(0, 2**16))
@examples(max_examples=10)
def test_savings_are_differences(wild: FxNetwork, seed: int) -> None:
    orders, keep = orders_of(wild, seed), keeps(wild, seed + 1)
    model = TARGETS["params"](wild, orders, torch.randn(1, 2, 6, 6), intercepts=True)
    for name in keep:
        now, fewer = keep[name], [max(1, keep[name] // 2), 1]
        saved = model.savings(model.dimensions(keep), name, now, fewer).tolist()
        assert saved == [model.of(keep) - model.of({**keep, name: k}) for k in fewer]
        for other in set(keep) - model.neighbours(name):
            assert model.savings(model.dimensions({**keep, other: 1}), name, now, fewer).tolist() == saved


class Toy:
    """A chain of layers, with made-up accuracies and errors, to try rules on without a network."""

    def __init__(self, widths: tuple[int, ...], seed: int, noise: float = 0.03) -> None:
        rng = np.random.default_rng(seed)
        layers = [nn.Linear(3, widths[0])]
        layers += [nn.Linear(a, b) for a, b in itertools.pairwise((*widths, 2))]
        self.network = analyse(nn.Sequential(*layers).eval(), torch.randn(2, 3))
        orders = {group.name: np.arange(len(group.units)) for group in self.network.channels.groups}
        self.size: SizeModel = TARGETS["params"](self.network, orders, torch.randn(1, 3), intercepts=False)
        self.errors: dict[str, Curve] = {}
        self.accuracies: dict[str, Curve] = {}
        for name, n in self.size.units.items():
            steps = rng.exponential(size=n) ** 2
            self.errors[name] = np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]]) / steps.sum()
            noisy = 0.9 - 0.8 * self.errors[name] ** 2 + noise * rng.normal(size=n + 1)
            noisy[-1] = 0.9
            self.accuracies[name] = np.round(noisy, 2)
        self.asked: list[tuple[str, int]] = []

    def budget(self) -> Budget:
        def trial(curves: Mapping[str, Curve], sign: float) -> Callable[[Sizes], dict[str, Curve]]:
            def run(sizes: Sizes) -> dict[str, Curve]:
                self.asked += [(name, k) for name, ks in sizes.items() for k in ks]
                return {name: sign * curves[name][list(ks)] for name, ks in sizes.items()}

            return run

        return Budget(self.size, self.errors, trial(self.accuracies, 1.0), trial(self.errors, 1.0))


WIDTHS = ((12, 7, 9), (40, 8), (5,), (200, 30), (2, 2, 2))


@pytest.mark.parametrize("rule", BUDGETS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_rules_meet_every_ratio_and_are_monotone(rule: str, widths: tuple[int, ...]) -> None:
    for seed in range(5):
        toy = Toy(widths, seed)
        smallest = toy.size.of(dict.fromkeys(toy.size.units, 1))
        largest = toy.size.total / smallest
        before: Keep | None = None
        for ratio in np.geomspace(1.0001, largest, 12):
            keep = allot(BUDGETS[rule], toy.budget(), float(min(ratio, largest)))
            assert toy.size.total / toy.size.of(keep) >= min(ratio, largest)
            assert all(1 <= keep[name] <= n for name, n in toy.size.units.items())
            if before is not None:
                assert toy.size.of(keep) <= toy.size.of(before)
            before = keep


@pytest.mark.parametrize("rule", ["uniform", "error"])
def test_no_group_grows_with_the_ratio(rule: str) -> None:
    toy = Toy((12, 7, 9), 0)
    plans = [allot(BUDGETS[rule], toy.budget(), ratio) for ratio in (1.2, 1.7, 2.5, 4, 6)]
    for more, less in itertools.pairwise(plans):
        assert all(less[name] <= more[name] for name in more)


@pytest.mark.parametrize("rule", BUDGETS)
def test_nothing_is_dropped_that_need_not_be(rule: str) -> None:
    """Less than twice what fits is left; steps are coarse, the network is small."""
    toy = Toy((12, 7, 9), 1)
    keep = allot(BUDGETS[rule], toy.budget(), 3.0)
    assert toy.size.of(keep) <= toy.size.total / 3
    assert toy.size.of(keep) > toy.size.total / 6


def equation_6(toy: Toy, target: float) -> Keep:
    """Paper eq. (6) by trying every drop of accuracy that occurs."""
    ks = {name: sorted({max(1, round(alpha * n)) for alpha in ALPHAS}) for name, n in toy.size.units.items()}
    monotone = {name: np.maximum.accumulate(toy.accuracies[name][ks[name]]) for name in ks}
    taus = sorted({float(curve[-1] - p) for curve in monotone.values() for p in curve})
    for tau in taus:
        keep = {
            name: next(k for k, p in zip(ks[name], curve, strict=True) if curve[-1] - p <= tau)
            for name, curve in monotone.items()
        }
        if toy.size.of(keep) <= target:
            return keep
    raise AssertionError


@pytest.mark.parametrize("rule", ["output", "accuracy"])
@pytest.mark.parametrize("ratio", [1.5, 3, 6])
def test_no_room_is_left(rule: str, ratio: float) -> None:
    budget = Toy((24, 40, 16), 3).budget()
    keep = allot(BUDGETS[rule], budget, ratio)
    more = [{**keep, group: k + 1} for group, k in keep.items() if k < budget.size.units[group]]
    assert more
    assert all(budget.size.total / budget.size.of(larger) < ratio for larger in more)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio", [1.5, 2, 4])
@pytest.mark.parametrize("widths", [(12, 7, 9), (60, 90)])
def test_accuracy_rule_is_equation_6(
    seed: int, ratio: float, widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where accuracy grows with k, what it does not measure changes nothing."""
    toy = Toy(widths, seed, noise=0)
    expected = equation_6(toy, toy.size.total / ratio)
    keep = allot(BUDGETS["accuracy"], toy.budget(), ratio)
    assert all(keep[name] >= expected[name] for name in keep), "what it leaves unused may be filled, nothing else"
    monkeypatch.setattr(module, "_filled", lambda budget, target, keep: keep)
    assert allot(BUDGETS["accuracy"], toy.budget(), ratio) == expected


@pytest.mark.parametrize("seed", range(8))
def test_accuracy_rule_with_noise_is_equation_6_on_what_it_measured(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy((12, 70, 9), seed, noise=0.05)
    monkeypatch.setattr(module, "_filled", lambda budget, target, keep: keep)
    keep = allot(BUDGETS["accuracy"], toy.budget(), 3)
    asked = {name: sorted({k for group, k in toy.asked if group == name}) for name in keep}
    drops = {name: toy.accuracies[name][ks].max() - toy.accuracies[name][ks] for name, ks in asked.items()}
    tau = max(drops[name][asked[name].index(k)] for name, k in keep.items())
    for name, k in keep.items():
        assert all(drop > tau for other, drop in zip(asked[name], drops[name], strict=True) if other < k)


def test_accuracy_rule_measures_what_matters() -> None:
    """Of the paper's fractions, and none twice."""
    toy = Toy((200, 30, 80, 120), 0, noise=0)
    allot(BUDGETS["accuracy"], toy.budget(), 3.0)
    allowed = {(name, max(1, round(alpha * n))) for name, n in toy.size.units.items() for alpha in ALPHAS}
    assert set(toy.asked) <= allowed
    assert len(set(toy.asked)) == len(toy.asked) < len(allowed) / 2
    assert len(ALPHAS) == 22
    assert ALPHAS[:4] == (0.01, 0.05, 0.075, 0.1)
    assert ALPHAS[-1] == 1.0


def test_where_the_smallest_fractions_are_too_large_nothing_is_measured() -> None:
    toy = Toy((200, 200), 0)
    keep = allot(BUDGETS["accuracy"], toy.budget(), 3000.0)
    assert max(keep.values()) < 0.01 * 200
    assert toy.asked == []


def test_bounds_of_what_is_not_measured_are_its_neighbours() -> None:
    least, most = bounds(np.asarray([np.nan, 0.5, np.nan, np.nan, 0.4, np.nan, 0.9]))
    assert least == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.4, 0.0, 0.0])  # the running maximum at k = 4 is 0.5
    assert most == pytest.approx([np.inf, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio", [1.2, 2, 6])
def test_output_rule_needs_no_smaller_probes(seed: int, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its budgets are those that all probes give."""
    toy, whole = Toy((40, 90, 60), seed), Toy((40, 90, 60), seed)
    keep = allot(BUDGETS["output"], toy.budget(), ratio)
    monkeypatch.setattr(budget_output, "AT_FIRST", len(PROBES))
    assert allot(BUDGETS["output"], whole.budget(), ratio) == keep
    assert len(whole.asked) == len(PROBES) * len(keep)
    assert len(set(toy.asked)) == len(toy.asked)
    if ratio == 1.2:
        assert len(toy.asked) < len(whole.asked)


def test_error_rule_is_one_threshold() -> None:
    """Paper section 5.2: the smallest threshold that fits, and every layer just below it."""
    toy = Toy((12, 7, 9), 2)
    keep = allot(BUDGETS["error"], toy.budget(), 2.5)
    threshold = max(toy.errors[name][k] for name, k in keep.items())
    assert keep == {name: int(np.argmax(curve <= threshold)) for name, curve in toy.errors.items()}
    smaller = max(error for curve in toy.errors.values() for error in curve if error < threshold)
    more = {name: max(1, int(np.argmax(curve <= smaller))) for name, curve in toy.errors.items()}
    assert toy.size.of(more) > toy.size.total / 2.5


def test_a_little_error_with_everything_kept_does_not_drop_everything() -> None:
    """Rounding may leave 1e-12 at k = n in one group and 0 in another; a threshold of 0 must not mean k = 1."""
    toy = Toy((12, 7), 3)
    toy.errors["0"][-1] = 1e-12
    keep = allot(BUDGETS["error"], toy.budget(), 1.0001)
    assert keep["0"] >= 10


def test_uniform_is_the_same_fraction() -> None:
    toy = Toy((20, 10, 40), 0)
    keep = allot(BUDGETS["uniform"], toy.budget(), 3.0)
    alphas = [k / n for k, n in ((keep[name], n) for name, n in toy.size.units.items())]
    assert max(alphas) - min(alphas) < 0.1
    assert fraction(toy.size.units, 0.3) == {"0": 6, "1": 3, "2": 12}


@pytest.mark.parametrize("rule", BUDGETS)
def test_an_unreachable_ratio_names_the_largest(rule: str) -> None:
    toy = Toy((12, 7, 9), 0)
    with pytest.raises(SubpruneError, match="cannot be reached") as caught:
        allot(BUDGETS[rule], toy.budget(), 1000)
    found = re.search(r"ask for at most ([0-9.]+)$", str(caught.value))
    assert found
    largest = float(found[1])
    keep = allot(BUDGETS[rule], toy.budget(), largest)
    assert set(keep.values()) == {1}
    with pytest.raises(SubpruneError, match="cannot be reached"):
        allot(BUDGETS[rule], toy.budget(), largest + 0.02)
