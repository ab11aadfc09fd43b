"""The three variants of the paper's section 5.1, layer by layer, against their definitions on whole activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support import sweep_of
from torch import Tensor, nn

from subprune_fx import Pruned, prune, prune_each
from subprune_fx.option_values import VARIANTS
from subprune_fx.passes.budgets import BUDGETS
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply
from subprune_fx.plan import Plan, same

F64 = torch.float64
RIDGE = 1e-3
PLAIN = Settings(feedback=False, rounds=0, ridge=RIDGE)


def mlp() -> nn.Sequential:
    """Its activation is no ReLU, so that nothing is dead."""
    layers = (nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))
    return nn.Sequential(*layers).to(F64).eval()


def inputs(count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator, dtype=F64) @ torch.randn(6, 6, generator=generator, dtype=F64)


def swept(net: nn.Module, x: Tensor, keep: dict[str, int], variant: str, settings: Settings = PLAIN) -> Plan:
    """Compile with the given numbers of units, in three batches."""
    compiler = Compiler(net, x, Options(variant=variant, settings=settings, batch=25))
    sweep = sweep_of(compiler, keep, late=compiler._decides_late())
    plan, outputs = sweep.run(compiler._batches)
    smaller = apply(plan, compiler.network.graph_module)
    torch.testing.assert_close(torch.cat(outputs), smaller(x), rtol=1e-10, atol=1e-10)
    return plan


def fitted(b: Tensor, y: Tensor, weight: Tensor, kept: Sequence[int]) -> tuple[Tensor, Tensor, float]:
    """Ridge regression of y on columns `kept` of b and a constant: weights, intercept, what is left of ||y||^2."""
    centred, aim = b - b.mean(0), y - y.mean(0)
    root = (RIDGE * centred.square().sum(0).mean()).sqrt()
    columns = torch.tensor(kept)
    design = torch.cat([centred[:, columns], root * torch.eye(b.shape[1], dtype=F64)[:, columns]])
    target = torch.cat([aim, root * weight])
    new = torch.linalg.lstsq(design, target).solution
    left = float((target - design @ new).square().sum())
    return new, y.mean(0) - b[:, columns].mean(0) @ new, left


def greedily(b: Tensor, y: Tensor, weight: Tensor, count: int) -> list[int]:
    kept: list[int] = []
    for _ in range(count):
        errors = {u: fitted(b, y, weight, [*kept, u])[2] for u in range(b.shape[1]) if u not in kept}
        kept.append(min(errors, key=lambda u: errors[u]))
    return sorted(kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_what_the_paper_says(variant: str) -> None:
    net, x = mlp(), inputs()
    keep = {"0": 6, "2": 5, "4": 4}
    plan = swept(net, x, keep, variant)
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    a = torch.tanh(linears[0](x)).detach()  # the original network's activation
    b = a  # the pruned-so-far network's, with all units of the layer
    for i, layer in enumerate(linears[1:], 1):
        weight = layer.weight.detach().mT
        assert layer.bias is not None
        bias = layer.bias.detach()
        reads, aims = {"asym": (b, a @ weight), "seq": (b, b @ weight), "layer": (a, a @ weight)}[variant]
        kept = greedily(reads, aims, weight, keep[f"{2 * i - 2}"])
        assert plan.decisions[i - 1].kept == tuple(kept)
        new, shift, _ = fitted(reads, aims, weight, kept)
        outputs = plan.decisions[i].kept if i < len(linears) - 1 else tuple(range(3))
        left = torch.tensor(outputs)
        torch.testing.assert_close(plan.values[f"{2 * i}.weight"], new.mT[left], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(plan.values[f"{2 * i}.bias"], (bias + shift)[left], rtol=1e-8, atol=1e-9)
        b = torch.tanh(b[:, torch.tensor(kept)] @ new + bias + shift)
        a = torch.tanh(a @ weight + bias)


def test_asym_is_nearest_to_the_original_here() -> None:
    """It alone knows what the original computes: on the calibration inputs its last layer fits best."""
    net, x = mlp(), inputs()
    keep = {"0": 4, "2": 3, "4": 3}
    wanted, errors = net(x).detach(), {}
    for variant in VARIANTS:
        smaller = apply(swept(net, x, keep, variant), net)
        errors[variant] = float((smaller(x).detach() - wanted).square().sum())
    assert errors["asym"] == min(errors.values())


class Stream(nn.Module):
    """One residual stream, read by three layers: decided once, for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x + torch.tanh(self.a(x))
        x = x + torch.tanh(self.b(x))
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_is_decided_by_the_sum_over_its_readers(variant: str) -> None:
    net, x = Stream().to(F64).eval(), inputs()
    plan = swept(net, x, {"stem": 5}, variant)
    with torch.no_grad():
        first = torch.tanh(net.stem(x))
        second = first + torch.tanh(net.a(first))
        third = second + torch.tanh(net.b(second))
    readers = [(a, layer.weight.detach().mT) for a, layer in ((first, net.a), (second, net.b), (third, net.last))]
    totals = []
    for a, weight in readers:
        centred = a - a.mean(0)
        ridge = RIDGE * centred.square().sum(0).mean()
        totals.append(float((centred @ weight).square().sum() + ridge * weight.square().sum()))

    def error(kept: list[int]) -> float:
        return sum(fitted(a, a @ w, w, kept)[2] / total for (a, w), total in zip(readers, totals, strict=True))

    kept: list[int] = []
    for _ in range(5):
        kept.append(min((u for u in range(8) if u not in kept), key=lambda u: error([*kept, u])))
    assert plan.decisions[0].kept == tuple(sorted(kept))
    assert plan.decisions[0].error == pytest.approx(error(kept) / len(readers), abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_kept_is_the_original(variant: str) -> None:
    net, x = Stream().to(F64).eval(), inputs()
    smaller = apply(swept(net, x, {"stem": 8}, variant, Settings()), net)
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-9, atol=1e-9)


def test_the_number_of_batches_does_not_matter() -> None:
    net, x = mlp(), inputs()
    plans = []
    for batch in (7, 60):
        compiler = Compiler(net, x, Options(batch=batch))
        plans.append(compiler.compile(1.5).plan)
    assert [decision.kept for decision in plans[0].decisions] == [decision.kept for decision in plans[1].decisions]
    for name, value in plans[0].values.items():
        torch.testing.assert_close(value, plans[1].values[name], rtol=1e-7, atol=1e-8)


def without_clock(found: Pruned) -> dict[str, object]:
    report = found.report.as_dict()
    report.pop("seconds")
    return report


@pytest.mark.parametrize("budget", BUDGETS)
def test_several_ratios_at_once_are_each_ratio_alone(budget: str) -> None:
    net, x = mlp().float(), inputs().float()
    ratios = (1.5, 3.0, 2.0)
    for ratio, found in zip(ratios, prune_each(net, x, ratios=ratios, budget=budget), strict=True):
        alone = prune(net, x, ratio=ratio, budget=budget)
        assert same(found.plan, alone.plan)
        assert without_clock(found) == without_clock(alone)
        assert torch.equal(found.module(x), alone.module(x))


@pytest.mark.parametrize("options", [{}, {"stochastic": 0.2}, {"stochastic": 0.2, "seed": 3}])
def test_the_same_call_gives_the_same_plan(options: dict[str, float]) -> None:
    net, x = mlp().float(), inputs().float()
    plans = [prune(net, x, ratio=2, **options).plan for _ in range(2)]  # type: ignore[arg-type]
    assert same(*plans)


def test_calibration_may_be_a_numpy_array() -> None:
    net, x = mlp().float(), inputs().float()
    assert same(prune(net, x, ratio=2).plan, prune(net, np.asarray(x), ratio=2).plan)


def test_the_network_is_left_alone() -> None:
    """Neither its parameters nor its mode change."""
    net, x = mlp().float().train(), inputs().float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    prune(net, x, ratio=2)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Stretching(nn.Module):
    """As long as it finds its input to be: what speaks decides how long each sound is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.length, self.second = nn.Linear(4, 16), nn.Linear(16, 1), nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        count = (40 * self.length(x).sigmoid().mean((1, 2))).long().clamp(min=2).max()
        x = x.mean(1, keepdim=True) * torch.arange(count)[:, None].cos()
        y: Tensor = self.last(self.second(x).relu()).mean(1)
        return y


def test_what_has_another_length_aims_at_the_original_alone() -> None:
    torch.manual_seed(0)
    model, x = Stretching().eval(), torch.randn(32, 6, 4)
    small, _, report = prune(model, x, keep=0.5)
    assert [(row.channels, row.kept) for row in report.groups] == [(16, 8), (16, 8)]
    with torch.no_grad():
        assert float((small(x) - model(x)).norm() / model(x).norm()) < 0.2


class Gated(nn.Module):
    """Channels times what a layer makes of them; of the products half are read, so the rest only the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.last((x * self.gate(x).sigmoid())[:, 4:12])
        return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_whose_outputs_go_with_what_it_reads(variant: str) -> None:
    torch.manual_seed(0)
    _, _, report = prune(Gated().eval(), inputs().float(), keep=0.5, variant=variant)
    assert sorted((row.channels, row.kept) for row in report.groups) == [(8, 4), (8, 4)]
