"""Operators that stand for several, those that onnxruntime's optimiser writes too: pruned as the several, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from test_onnx_graphs import BATCH, Compile, Weights, compiled, dead, model, random

from subprune_fx.cli.main import main
from subprune_fx.frontends.onnx_spelled import spelled

__all__ = ["compiled"]

WEIGHTS: Weights = {
    "w": random(6, 16),
    "b": random(16),
    "v": dead(random(16, 3)),
    "c": random(3),
    "wide": dead(random(16, 6)),
    "shift": random(6, seed=1),
    "scale": random(6, seed=2),
    "offset": random(6, seed=3),
    "u": random(6, 3),
    "one": random(1),
    "number": np.asarray(0.7, np.float32),
}
for first in ("w", "b"):
    WEIGHTS[first][..., ::2] = 0  # else a neuron that nobody reads may still be what tells most
WEIGHTS |= {"wt": WEIGHTS["w"].T.copy(), "vt": WEIGHTS["v"].T.copy()}


def fused(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Operands are words; `-` is one that is left out."""
    given, made = ([name.replace("-", "") for name in words.split()] for words in (inputs, outputs))
    return helper.make_node(op, given, made, f"{op} {made[0]}", domain="com.microsoft", **attributes)


def plain(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


PRODUCT, BIAS, RELU = plain("MatMul", "x w", "h0"), plain("Add", "h0 b", "h1"), plain("Relu", "h1", "h")
READER, WIDE, LAST = plain("MatMul", "h v", "y"), plain("MatMul", "h wide", "z"), plain("MatMul", "n u", "y")
CASES: dict[str, list[onnx.NodeProto]] = {
    "BiasGelu": [PRODUCT, fused("BiasGelu", "h0 b", "h"), READER],
    "FastGelu": [PRODUCT, fused("FastGelu", "h0 b", "h"), READER],
    "FastGelu without bias": [PRODUCT, BIAS, fused("FastGelu", "h1", "h"), READER],
    "Gelu": [PRODUCT, BIAS, fused("Gelu", "h1", "h"), READER],
    "QuickGelu": [PRODUCT, BIAS, fused("QuickGelu", "h1", "h", alpha=1.5), READER],
    "FusedGemm": [
        fused("FusedGemm", "x w b", "h", activation="LeakyRelu", activation_alpha=0.3),
        fused("FusedGemm", "h v c", "y", activation="Relu"),
    ],
    "FusedMatMul": [PRODUCT, BIAS, RELU, fused("FusedMatMul", "h v", "y", alpha=0.5)],
    "FusedMatMul, transposed": [
        fused("FusedMatMul", "x wt", "h0", transB=1),
        *[BIAS, RELU],
        fused("FusedMatMul", "h vt", "y", transB=1),
    ],
    "FusedGemm, scaled": [
        fused("FusedGemm", "x w b", "h", activation="Relu", alpha=2.0, beta=0.5),
        fused("FusedGemm", "h vt", "y", activation="Softplus", alpha=0.5, transB=1),
    ],
    "Gemm, scaled": [
        plain("Gemm", "x w b", "h1", alpha=0.5, beta=2.0),
        RELU,
        plain("Gemm", "h vt", "y", transB=1, alpha=3.0),
    ],
    "Gemm, transposed": [
        plain("Transpose", "x", "xt", perm=[1, 0]),
        plain("Gemm", "xt w b", "h1", transA=1),
        *[RELU, plain("Gemm", "h v c", "y")],
    ],
    "Gemm with one number": [plain("Gemm", "x w one", "h1"), RELU, plain("Gemm", "h v number", "y")],
    "SkipLayerNormalization": [
        *[PRODUCT, BIAS, RELU, WIDE, LAST],
        fused("SkipLayerNormalization", "z x scale offset shift", "n", epsilon=1e-3),
    ],
    "its sum": [
        *[PRODUCT, BIAS, RELU, WIDE, LAST],
        fused("SkipLayerNormalization", "x z scale", "m - - s"),
        plain("Add", "m s", "n"),
    ],
    "SkipSimplifiedLayerNormalization": [
        *[PRODUCT, BIAS, RELU, WIDE, LAST],
        fused("SkipSimplifiedLayerNormalization", "z x scale shift", "n"),
    ],
}


def optimised(nodes: list[onnx.NodeProto], weights: Weights, *shape: int) -> onnx.ModelProto:
    """As onnxruntime writes it; `shape` of an input."""
    made = model(nodes, weights, [BATCH, *shape], out=[BATCH, 3])
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def network(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """x -> 16 neurons, every other of which nobody reads -> y."""
    read = {name for node in nodes for name in node.input}
    return optimised(nodes, {name: value for name, value in WEIGHTS.items() if name in read}, 6)


def halved(made: onnx.ModelProto) -> dict[str, list[int]]:
    """The sizes of weights without the dead neurons."""
    return {t.name: [8 if size == 16 else size for size in t.dims] for t in made.graph.initializer}


@pytest.mark.parametrize("name", CASES)
def test_dead_neurons_go(name: str, compiled: Compile) -> None:
    made = network(CASES[name])
    wanted = halved(made)
    before = sum(int(np.prod(tensor.dims)) for tensor in made.graph.initializer)
    found = compiled(made, ratio=0.999 * before / sum(int(np.prod(dims)) for dims in wanted.values()))
    assert {tensor.name: list(tensor.dims) for tensor in found.graph.initializer} == wanted
    assert sorted(map(str, found.graph.node)) == sorted(map(str, made.graph.node))


@pytest.mark.parametrize(
    ("kind", "numbers"), [("Relu", []), ("Clip", [-0.5, 1.5]), ("HardSigmoid", [0.3, 0.4]), ("LeakyRelu", [0.2])]
)
def test_a_convolution_with_a_sum_and_an_activation(kind: str, numbers: list[float], compiled: Compile) -> None:
    weights = {"w": random(16, 3, 3, 3), "b": random(16), "v": random(3, 16, 3, 3), "c": random(3)}
    weights["v"][:, ::2] = 0
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1], "activation": kind}
    attributes |= {"activation_params": numbers} if numbers else {}
    nodes = [
        fused("FusedConv", "x w b", "h", **attributes),
        fused("FusedConv", "h v c x", "z", **attributes),
        plain("GlobalAveragePool", "z", "p"),
        plain("Flatten", "p", "y"),
    ]
    made = optimised(nodes, weights, 3, 4, 4)
    found = compiled(made)
    assert {tensor.name: list(tensor.dims) for tensor in found.graph.initializer} == halved(made)
    assert found.graph.node == made.graph.node


def test_constants_that_fused_nodes_share_part_where_they_differ(compiled: Compile) -> None:
    """One vector of zeros as two biases; one of the layers is pruned."""
    weights = {"w": random(6, 16), "b": np.zeros(16, np.float32), "u": random(16, 16), "v": random(16, 3)}
    weights["u"][::2] = 0
    nodes = [
        plain("MatMul", "x w", "h0"),
        fused("BiasGelu", "h0 b", "h1"),
        plain("MatMul", "h1 u", "h2"),
        fused("BiasGelu", "h2 b", "h"),
        plain("MatMul", "h v", "y"),
    ]
    made = optimised(nodes, weights, 6)
    found = compiled(made, "--only", "MatMul_h0", ratio=1.5)
    first, second = sorted(tensor.dims[0] for tensor in found.graph.initializer if len(tensor.dims) == 1)
    assert first < second == 16


def test_a_constant_that_one_fused_node_reads_twice(tmp_path: Path) -> None:
    """Zeros, stored once: the bias of a layer takes an intercept, what is added after the normalisation none."""
    weights = {"w": random(6, 16), "wide": random(16, 6), "scale": random(6), "zero": np.zeros(6, np.float32)}
    nodes = [
        plain("MatMul", "x w", "h0"),
        plain("Relu", "h0", "h"),
        plain("MatMul", "h wide", "z"),
        fused("SkipLayerNormalization", "z x scale zero zero", "n"),
        plain("MatMul", "n u", "y"),
    ]
    made = optimised(nodes, {**weights, "u": random(6, 3)}, 6)
    onnx.save(made, tmp_path / "a.onnx")
    np.savez(tmp_path / "x.npz", x=random(400, 6) + 1)
    words = [str(tmp_path / "a.onnx"), "--ratio", "1.4", "--calib", str(tmp_path / "x.npz"), "-q"]
    assert main([*words, "-o", str(tmp_path / "b.onnx")]) == 0  # which has compared the file with the graph
    (node,) = (node for node in onnx.load(str(tmp_path / "b.onnx")).graph.node if node.op_type == nodes[3].op_type)
    assert node.input[3] != node.input[4]


@pytest.mark.parametrize(
    "node",
    [
        fused("FusedGemm", "x w b", "h", activation="ScaledTanh"),
        fused("FusedMatMul", "x w", "h", transBatchA=1),
        fused("FusedMatMul", "x unknown", "h", transB=1),
        fused("SkipLayerNormalization", "x z scale", "n mean"),
    ],
)
def test_what_cannot_be_spelled_stays(node: onnx.NodeProto) -> None:
    made = model([node], WEIGHTS, [BATCH, 6], out=[BATCH, 3])
    assert spelled(made)[0] is made
