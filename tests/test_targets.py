"""The size models count what pruning really leaves, parameters and multiply-adds alike."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_flops import multiply_adds
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.export import to_onnx
from subprune_fx.passes.flops import counted
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.size import TARGETS
from subprune_fx.passes.summary import cost
from subprune_fx.passes.sweep import Sweep
from subprune_fx.selectors import SELECTORS, Evidence


class Mixed(nn.Module):
    """Strides, a depthwise and a grouped convolution, a residual addition, a concatenation, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.back = nn.Conv2d(12, 8, 1)
        self.side = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(14 * 16, 10)
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        x = torch.relu(x + self.back(y))
        x = torch.cat([x, torch.relu(self.side(x))], dim=1)
        found: Tensor = self.out(torch.relu(self.head(x.flatten(1))))
        return found


@pytest.mark.parametrize("seed", range(4))
def test_predicted_sizes_are_the_real_ones(seed: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    network = analyse(Mixed().eval(), x)
    generator = torch.Generator().manual_seed(seed)
    groups = network.channels.groups
    assert len(groups) >= 4
    nested = {g.name: SELECTORS["layerrandom"].rank(Evidence(len(g.units), generator), None) for g in groups}
    orders = {name: ranking.order.numpy() for name, ranking in nested.items()}
    rng = np.random.default_rng(seed)
    keep = {group.name: int(rng.integers(1, len(group.units) + 1)) for group in groups}
    sweep = Sweep(network, keep, nested, variant="asym", settings=Settings(), reweight=False)
    plan, _ = sweep.run([x])
    real = cost(apply(plan, network.graph_module), x[:1])
    models = {name: model(network, orders, x[:1], intercepts=False) for name, model in TARGETS.items()}
    original = cost(network.graph_module, x[:1])
    assert {name: model.total for name, model in models.items()} == {
        "params": original.parameters,
        "flops": original.flops,
    }
    assert {name: model.of(keep) for name, model in models.items()} == {
        "params": real.parameters,
        "flops": real.flops,
    }
    for model in models.values():
        for name, kept in keep.items():
            (saved,) = model.savings(model.dimensions(keep), name, kept, [1])
            assert saved == model.of(keep) - model.of({**keep, name: 1})
            assert kept == 1 or saved > 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("budget", ["output", "accuracy", "error", "uniform", None])
@pytest.mark.parametrize("select", ["inchange", "weightnorm", "layersampling"])
def test_the_ratio_holds_for_its_target(target: str, budget: str | None, select: str) -> None:
    report = subprune_fx.prune(
        Mixed().eval(), torch.randn(16, 3, 8, 8), ratio=2, target=target, budget=budget, select=select
    ).report
    assert {"params": report.achieved, "flops": report.speedup}[target] >= 2


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(SubpruneError, match="no target 'bytes'; use one of params, flops, size, latency"):
        subprune_fx.prune(Mixed().eval(), torch.randn(4, 3, 8, 8), ratio=2, target="bytes")


def test_layers_can_be_chosen_and_left_alone() -> None:
    x = torch.randn(16, 3, 8, 8)

    def kept(**options: list[str]) -> dict[str, bool]:
        report = subprune_fx.prune(Mixed().eval(), x, ratio=1.1, budget="uniform", **options).report  # type: ignore[arg-type]
        assert report.achieved >= 1.1
        return {row.name: row.kept < row.channels for row in report.groups}

    everything = kept()
    assert kept(only=["head"]) == {"head": True}
    assert kept(only=["head", "g*"], skip=["gr?uped"]).keys() == {"head"}
    assert kept(skip=["stem"]).keys() == everything.keys() - {"stem"}


@pytest.mark.parametrize(
    ("only", "skip", "says"),
    [
        (["tail"], [], "no prunable layer is called 'tail'; there are stem"),
        ([], ["*"], "every prunable layer is excluded"),
    ],
)
def test_choices_that_match_nothing_are_refused(only: list[str], skip: list[str], says: str) -> None:
    with pytest.raises(SubpruneError, match=says):
        subprune_fx.prune(Mixed().eval(), torch.randn(4, 3, 8, 8), ratio=2, only=only, skip=skip)


def test_left_alone_layers_keep_their_shape() -> None:
    pruned = subprune_fx.prune(Mixed().eval(), torch.randn(16, 3, 8, 8), ratio=2, skip=["stem"])
    assert pruned.module.get_parameter("stem.weight").shape == (8, 3, 3, 3)
    assert ("stem", "you asked to leave it alone") in [(row.name, row.reason) for row in pruned.report.frozen]


def test_the_accuracy_budget_measures_on_the_verification_inputs() -> None:
    """With labels that only the original's predictions match, and inputs of its own."""
    module, x, other = Mixed().eval(), torch.randn(16, 3, 8, 8), torch.randn(40, 3, 8, 8)
    with torch.no_grad():
        y = module(other).argmax(1)

    def kept(**options: object) -> list[tuple[int, ...]]:
        pruned = subprune_fx.prune(module, x, ratio=2, budget="accuracy", **options)  # type: ignore[arg-type]
        return [decision.kept for decision in pruned.plan.decisions]

    assert kept(verification=(other, y)) != kept(verification=(other, (y + 1) % 4))
    assert kept(verification=(x, module(x).argmax(1))) == kept()


@pytest.mark.parametrize("ratio", [1.5, 2, 4])
def test_the_accuracy_budget_leaves_no_room(ratio: float) -> None:
    """No layer could keep one channel more."""
    x = torch.randn(16, 3, 8, 8)
    network = analyse(Mixed().eval(), x[:2])
    orders = {group.name: np.arange(len(group.units)) for group in network.channels.groups}
    size = TARGETS["params"](network, orders, x[:1], intercepts=False)
    pruned = subprune_fx.prune(Mixed().eval(), x, ratio=ratio, budget="accuracy", intercept=False, reweight=False)
    keep = {decision.group: len(decision.kept) for decision in pruned.plan.decisions}
    assert size.of(keep) * ratio <= size.total
    assert all(size.of({**keep, name: k + 1}) * ratio > size.total for name, k in keep.items() if k < size.units[name])


class Recurrent(nn.Module):
    """Two layers of one kind, both directions, then a layer on the last step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.steps = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)  # type: ignore[arg-type, call-arg]
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.steps(x)[0][:, -1])
        return found


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("way", ["symbolic", "exported", "onnx"])
def test_recurrent_layers_cost_their_weights_at_each_step(kind: type[nn.RNNBase], way: str, tmp_path: Path) -> None:
    network, x = Recurrent(kind).eval(), torch.randn(2, 7, 5)
    if way == "onnx":
        to_onnx(network, x[:1], tmp_path / "x.onnx")
        graph = next(traces(load_model(tmp_path / "x.onnx").module, x))
    else:
        graph = next(itertools.islice(traces(network, x), int(way == "exported"), None))
    weights = sum(p.numel() for p in network.steps.parameters() if p.ndim == 2)
    assert cost(graph, x).flops == 7 * weights + network.out.weight.numel()


@pytest.mark.parametrize(
    ("equation", "shapes", "out", "count"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], (2, 4), 2 * 3 * 4),
        ("b...i, oi -> b...o", [(5, 7, 8, 3), (4, 3)], (5, 7, 8, 4), 5 * 7 * 8 * 3 * 4),
    ],
)
def test_einsum_sums_over_the_letters_that_go(equation: str, shapes: Any, out: Any, count: int) -> None:
    operands = [[torch.zeros(shape) for shape in shapes]]
    assert multiply_adds("Einsum", operands, torch.zeros(out), equation) == count


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_attention_of_onnx_costs_what_torch_counts(heads: int, side_by_side: bool) -> None:
    query, key, value = torch.randn(2, heads, 7, 4), torch.randn(2, heads, 5, 4), torch.randn(2, heads, 5, 6)
    out, expected = counted(functools.partial(torch.nn.functional.scaled_dot_product_attention, query, key, value))
    operands = [query, key, value, out]
    if side_by_side:
        operands = [tensor.transpose(1, 2).flatten(2) for tensor in operands]
    assert multiply_adds("Attention", operands[:3], operands[3]) == expected


class Queried(nn.Module):
    """A layer reads a parameter, as attention that pools reads its query."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 3, 8))
        self.ask, self.wide, self.narrow, self.last = (nn.Linear(a, b) for a, b in ((8, 8), (8, 16), (16, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        asked = self.ask(self.query) * self.ask(self.query.expand(x.shape[0], -1, -1))
        y: Tensor = self.last(asked.mean(1) + self.narrow(self.wide(x).relu()))
        return y


def test_a_layer_that_is_given_a_parameter_is_counted() -> None:
    found = subprune_fx.prune(Queried(), torch.randn(20, 8), keep=0.5).report
    assert found.before.flops == 2 * 3 * 8 * 8 + 2 * 8 * 16 + 8 * 2
    assert found.after.flops == 2 * 3 * 8 * 4 + 8 * 8 + 8 * 4 + 4 * 2
