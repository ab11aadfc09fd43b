"""Parts of a network run in sessions of many nodes give what its nodes give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from subprune_fx.formats.onnx_file import load_onnx
from subprune_fx.frontends.onnx_fused import Fused
from subprune_fx.frontends.onnx_static import resolve_batch
from subprune_fx.passes.segment import Segment, chains
from subprune_fx.passes.trials import patched

X = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def network() -> fx.GraphModule:
    """Convolutions, a branch by a condition (which is no part of a session), a split, and a weight that is turned."""
    random = np.random.default_rng(0)
    weights = {"a": (6, 4, 3, 3), "b": (6, 6, 3, 3), "c": (7, 3), "bound": ()}
    inner = [
        helper.make_graph(
            [helper.make_node(kind, ["h2"], [f"{kind}_out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["h1"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["h1", "r"], ["h2"]),
        helper.make_node("ReduceMax", ["h2"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "bound"], ["yes"]),
        helper.make_node("If", ["yes"], ["h3"], then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Split", ["h3"], ["p", "q"], axis=1),
        helper.make_node("Mul", ["p", "q"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Transpose", ["c"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "turned"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [
            numpy_helper.from_array(np.asarray(random.standard_normal(shape) if shape else 0, dtype=np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    module = resolve_batch(load_onnx(model.SerializeToString(), "net.onnx").module, X)
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.mark.parametrize("cut", range(1, 19, 3))
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_in_two_parts_with_a_weight_that_changes(cut: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    nodes, known = list(module.graph.nodes), chains(module.graph)
    built: list[Any] = []
    counts: list[int] = []
    monkeypatch.setattr(Fused, "__init__", _counted(Fused.__init__, built))
    interpreter = fx.Interpreter(module)
    inputs = [node for node in nodes if node.op == "placeholder"]
    first, rest = (Segment(interpreter, part, known, [name]) for part in (nodes[:cut], nodes[cut:]))
    for seed in range(3):
        value = torch.randn(getattr(module, name).shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), patched(module, {name: value}):
            before = first(dict.fromkeys(inputs, X), first.parameters())
            found: Tensor = rest(before, rest.parameters())[nodes[-1]]
            # one kernel or another: sums of 54 products in float32
            torch.testing.assert_close(found, module(X), rtol=1e-4, atol=1e-4)
        counts.append(len(built))
    assert set(counts) == {counts[0]}  # once
    assert counts[0] <= 4  # and in few pieces


def test_what_nobody_reads_again_is_gone() -> None:
    module = network()
    nodes, known = list(module.graph.nodes), chains(module.graph)
    (start,) = (place for place, node in enumerate(nodes) if node.name.startswith("Add"))
    found = Segment(fx.Interpreter(module), nodes[:start], known)(dict.fromkeys(nodes[:1], X))
    assert set(found) == set(nodes[start].all_input_nodes)


def _counted(init: Any, built: list[Any]) -> Any:
    def made(self: Fused, *args: Any) -> None:
        built.append(self)
        init(self, *args)

    return made
