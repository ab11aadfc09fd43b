"""What a network shows on its way is what its nodes compute one by one, in however many sessions it is run."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from test_segments import X, network
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.formats.onnx_file import load_onnx
from subprune_fx.passes import lockstep, walk
from subprune_fx.passes.dependencies import clearest
from subprune_fx.passes.segment import Segment
from subprune_fx.passes.walk import Walk


class Nodes(fx.Interpreter):
    """Every node's value, by name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = found = super().run_node(n)
        return found


def torch_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5, 3)).eval()


@pytest.mark.parametrize("room", [1, 3000, walk.ROOM])
@pytest.mark.parametrize("make", [network, torch_network])
def test_each_is_shown_once_and_right(room: int, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "ROOM", room)
    found = clearest(make(), X)
    nodes = list(found.graph_module.graph.nodes)
    shown = [node for node in nodes if node.op != "output"]
    runner = Walk(found, shown)
    for samples in (6, 2):  # the second batch is smaller, and shows the same
        reference = Nodes(found.graph_module)
        values: dict[str, Any] = {}
        times = collections.Counter[str]()

        def show(node: fx.Node, value: Any, values: dict[str, Any] = values, times: Any = times) -> None:
            times[node.name] += 1
            values[node.name] = value

        with torch.no_grad():
            output = runner(X[:samples], show)
            wanted = reference.run(X[:samples])
        assert times == {node.name: 1 for node in shown}
        for name, value in values.items():
            # one kernel or another: sums of 54 products in float32
            torch.testing.assert_close(value, reference.values[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_that_is_shown_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is still to be read goes from one session to the next."""
    monkeypatch.setattr(walk, "ROOM", 1)
    found = clearest(network(), X)
    nodes = list(found.graph_module.graph.nodes)
    seen: list[int] = []
    original = Segment.__call__

    def counted(self: Segment, environment: Any, parameters: Any = None) -> dict[fx.Node, Any]:
        seen.append(len(environment))
        return original(self, environment, parameters)

    monkeypatch.setattr(Segment, "__call__", counted)
    with torch.no_grad():
        Walk(found, nodes[:-1])(X)
    assert max(seen) <= 2  # the two that an addition reads


def hourglasses(count: int) -> bytes:
    """Wide and narrow 1 x 1 convolutions in turns, as in MobileNet, on maps of constant size."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number in range(2 * count):
        shape = (16, 4) if number % 2 == 0 else (4, 16)
        weights.append(numpy_helper.from_array(random.standard_normal((*shape, 1, 1), dtype=np.float32), f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"h{number}"]))
        last = f"h{number}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["g"]), helper.make_node("Flatten", ["g"], ["y"])]
    ends = [helper.make_tensor_value_info("x", 1, ["n", 4, 8, 8]), helper.make_tensor_value_info("y", 1, ["n", 4])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found: bytes = model.SerializeToString()
    return found


def test_memory_that_is_needed_again_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory costs more than the operator that fills it: a sweep gives some back when less is to come."""
    given: list[None] = []
    monkeypatch.setattr(lockstep, "give_back", lambda: given.append(None))
    module = load_onnx(hourglasses(6), "net.onnx").module
    x: Tensor = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    small = subprune_fx.prune(module, x, keep=0.5).module
    assert small(x).shape == (20, 4)
    assert 1 <= len(given) <= 4  # behind the last wide one, and at the end
