"""Compiling as one pass among others in torch.fx's pass manager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

from subprune_fx import SubpruneError, prune
from subprune_fx.passes import PrunePass
from subprune_fx.plan import same


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return fx.symbolic_trace(nn.Sequential(*layers).eval())


def inputs(count: int = 20) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


class Sigmoid(PassBase):
    """Another pass: ReLUs become sigmoids."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        for name, module in list(graph_module.named_modules()):
            if isinstance(module, nn.ReLU):
                graph_module.set_submodule(name, nn.Sigmoid())
        return PassResult(graph_module, modified=True)


def run(*passes: Any) -> PassResult:
    found = PassManager(passes=list(passes))(network())
    assert isinstance(found, PassResult)
    return found


def test_gives_what_prune_gives() -> None:
    step = PrunePass(inputs(), ratio=2, budget="uniform")
    found, direct = run(step), prune(network(), inputs(), ratio=2, budget="uniform")
    assert found.modified
    assert torch.equal(found.graph_module(inputs()), direct.module(inputs()))
    assert step.plan is not None
    assert step.report is not None
    assert same(step.plan, direct.plan)
    assert step.report.achieved >= 2


def test_runs_after_and_before_other_passes() -> None:
    """The passes see what those before them made."""
    before = run(Sigmoid(), PrunePass(inputs(), ratio=2)).graph_module
    after = run(PrunePass(inputs(), ratio=2), Sigmoid()).graph_module
    for module in (before, after):
        assert any(isinstance(layer, nn.Sigmoid) for layer in module.modules())
        assert not any(isinstance(layer, nn.ReLU) for layer in module.modules())
        assert module(inputs()).shape == (20, 3)
    assert not torch.equal(before(inputs()), after(inputs()))


def test_its_result_can_be_pruned_again() -> None:
    twice = run(PrunePass(inputs(), ratio=1.5), PrunePass(inputs(), ratio=1.5)).graph_module
    before = sum(p.numel() for p in network().parameters())
    assert sum(p.numel() for p in twice.parameters()) <= before / 2.25


def test_its_input_is_left_alone() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    PrunePass(inputs(), ratio=2)(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net(inputs()).shape == (20, 3)


def test_nothing_was_decided_before_the_first_call() -> None:
    step = PrunePass(inputs(), ratio=2)
    assert step.plan is None
    assert step.report is None


def test_its_result_is_a_graph_that_lints_and_traces() -> None:
    module = run(PrunePass(inputs(), ratio=2)).graph_module
    module.graph.lint()
    again = fx.symbolic_trace(module)
    assert torch.equal(again(inputs()), module(inputs()))


def test_bad_input_is_the_libraries_error() -> None:
    with pytest.raises(SubpruneError, match="not a number above 1"):
        PrunePass(inputs(), ratio=0.5)(network())
    with pytest.raises(Exception, match="'PrunePass' pass") as caught:
        run(PrunePass(inputs(), ratio=0.5))
    assert isinstance(caught.value.__cause__, SubpruneError)
