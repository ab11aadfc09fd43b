"""What consumers are fitted to: residual feedback, and targets that an activation lets through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from subprune_fx.frontends.fx_intercepts import Intercept
from subprune_fx.frontends.fx_order import shallow_first
from subprune_fx.frontends.fx_tails import Tail
from subprune_fx.numerics.saturation import correction
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply

values = st.floats(-10, 10).map(float)


@given(st.lists(st.tuples(values, values), min_size=1), st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-3.0, 3.0)]))
def test_correction_leads_to_the_nearest_equivalent_input(
    pairs: list[tuple[float, float]], flat: tuple[float, float]
) -> None:
    wanted, got = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
    found, rounding = wanted + correction(wanted, got, flat), 1e-14  # of the sum, of numbers up to 10
    torch.testing.assert_close(found.clamp(*flat), wanted.clamp(*flat), rtol=0, atol=rounding)
    # Of all inputs with the same output the nearest: got itself where that is one of them, else the nearest end.
    same = got.clamp(*flat) == wanted.clamp(*flat)
    torch.testing.assert_close(found[same], got[same], rtol=0, atol=rounding)
    other = found[~same]
    ends = torch.stack([(other - end).abs() for end in (*flat, wanted[~same])])
    assert bool((ends.amin(0) <= rounding).all())


class Residual(nn.Module):
    """Blocks whose shortcut is a node that a tracer puts after the branch."""

    def __init__(self, blocks: int = 4, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2 * blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * blocks))
        self.shortcut = nn.Identity()
        self.head = nn.Linear(width, 5)
        for norm in self.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.running_mean = torch.randn(width) * 0.3
            norm.running_var = torch.rand(width) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for i in range(0, len(self.convs), 2):
            y = torch.relu(self.norms[i](self.convs[i](x)))
            x = torch.relu(self.norms[i + 1](self.convs[i + 1](y)) + self.shortcut(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def error_at(name: str, inputs: Tensor, **settings: object) -> float:
    """Squared error of a pruned two-block `Residual` at a node, on the stream's channels that are kept."""
    torch.manual_seed(0)
    options = Options(budget="uniform", settings=Settings(ridge=1e-6, **settings))  # type: ignore[arg-type]
    compiler = Compiler(Residual(blocks=2).eval(), inputs, options)
    plan = compiler.compile(2.0).plan
    (stream,) = (decision for decision in plan.decisions if decision.group == "stem")
    original = compiler.network.graph_module
    want = value_at(name, original, inputs)[:, list(stream.kept)]
    return float((value_at(name, apply(plan, original), inputs) - want).square().sum())


def value_at(name: str, graph: fx.GraphModule, inputs: Tensor) -> Tensor:
    found: dict[str, Tensor] = {}

    class Spy(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Spy(graph).run(inputs)
    return found[name]


def test_feedback_makes_up_for_the_shortcut(inputs: Tensor) -> None:
    # The second block's shortcut carries the first block's error.
    with_, without = (error_at("add_1", inputs, feedback=feedback, rounds=0) for feedback in (True, False))
    assert with_ < without


def test_refitting_lowers_the_error_after_the_activation(inputs: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()).eval()
    with torch.no_grad():
        wanted = network(inputs)
    errors = []
    for rounds in (0, 1, 2, 4):
        options = Options(budget="uniform", settings=Settings(ridge=1e-6, rounds=rounds), batch=len(inputs))
        (got,) = Compiler(network, inputs, options).compile(2.0).outputs
        errors.append(float((got - wanted).square().sum()))
    assert errors == sorted(errors, reverse=True)  # the last layer's error is what each round lowers
    assert errors[-1] < 0.95 * errors[0]


def test_shallow_first_puts_the_shortcut_before_the_branch(inputs: Tensor) -> None:
    graph = fx.symbolic_trace(Residual().eval())
    before = graph(inputs)
    shallow_first(graph.graph)
    graph.graph.lint()
    graph.recompile()
    torch.testing.assert_close(graph(inputs), before, rtol=0, atol=0)
    names = [node.name for node in graph.graph.nodes]
    assert names.index("shortcut") < names.index("convs_0")


def test_tails() -> None:
    network = analyse(Residual(blocks=1).eval(), torch.randn(2, 3, 8, 8))
    tails = network.tails
    assert tails["stem"] == Tail(flat=(0.0, math.inf))
    inner, outer = tails["convs_0"], tails["convs_1"]
    assert inner.norm is not None
    assert (inner.norm.mean, inner.other, inner.flat) == ("norms.0.running_mean", None, (0.0, math.inf))
    assert outer.other is not None
    assert (outer.other.name, outer.flat) == ("shortcut", (0.0, math.inf))
    assert tails["head"] == Tail()
    assert np.isinf(tails["head"].flat).all()
    assert not tails["head"].saturates


def test_a_norm_over_another_dimension_is_no_tail() -> None:
    """A BatchNorm behind a linear layer over positions: as many positions as outputs, so that shapes tell nothing."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    positions, flat = torch.randn(3, 4, 6), torch.randn(3, 6)
    over_positions, over_outputs = analyse(model.eval(), positions), analyse(model, flat)
    assert over_positions.tails["_2"] == Tail()
    assert over_positions.places["_2"] == Intercept("2.bias", 1, new=True)
    assert over_outputs.tails["_2"].norm is not None
    assert over_outputs.places["_2"] == Intercept("3.running_mean", -1)


@pytest.mark.parametrize(("alpha", "place"), [(1, Intercept("vector", 1)), (0.5, None)])
def test_a_vector_that_is_scaled_is_no_bias(alpha: float, place: Intercept | None) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 6)
            self.matrix, self.vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.first(x).relu() @ self.matrix, self.vector, alpha=alpha)

    network = analyse(Product().eval(), torch.randn(5, 3))
    (product,) = network.channels.consumers
    assert network.places.get(product) == place
