"""ONNX files of every kind: how weights are stored, which opset, what cannot be pruned and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import subprune_fx
from subprune_fx.cli.main import main
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_plain import reads
from subprune_fx.frontends.onnx_static import fixed_batch, resolve_batch
from subprune_fx.passes.dependencies import analyse
from subprune_fx.plan import Plan

Weights = dict[str, NDArray[Any]]
BATCH, NEWEST = "batch", onnx.defs.onnx_opset_version()


def model(
    nodes: list[onnx.NodeProto], weights: Weights, shape: list[Any], *, opset: int = 13, ir: int = 8, out: Any = None
) -> onnx.ModelProto:
    """A model with one input `x` and one output `y`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def mlp(*, dead: bool = True, **options: Any) -> onnx.ModelProto:
    """x -> 16 neurons -> y. Half of the neurons are read by nobody, so that half of the size costs nothing."""
    weights = {"w": random(6, 16), "b": random(16), "v": random(16, 3), "c": random(3, seed=1)}
    if dead:
        weights["v"][::2] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h0"], name="first"),
        helper.make_node("Add", ["h0", "b"], ["h1"], name="bias"),
        helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
        helper.make_node("Gemm", ["h2", "v", "c"], ["y"], name="last"),
    ]
    return model(nodes, weights, [BATCH, 6], out=[BATCH, 3], **options)


def outputs(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.astype(kind)})[0])


def check_kept(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Signature and declarations are what they were, nothing is left that belongs to nobody, all names are names."""
    assert after.graph.output == before.graph.output
    assert after.graph.input[0] == before.graph.input[0]
    assert (after.opset_import, after.metadata_props) == (before.opset_import, before.metadata_props)
    read = {name for node in after.graph.node for name in reads(node)} | {value.name for value in after.graph.output}
    made = [name for node in after.graph.node for name in node.output if name]
    constants = [tensor.name for tensor in after.graph.initializer]
    assert set(constants) <= read
    assert {value.name for value in after.graph.value_info} <= set(made)
    assert len({*made, *constants}) == len([*made, *constants])
    assert all(name.isprintable() and name for name in [*made, *constants])


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    """Compile a model on the command line; the output must equal the original's, since what goes is dead."""

    def compile_(made: onnx.ModelProto, *words: str, ratio: float = 1.9, tolerance: float = 1e-5) -> onnx.ModelProto:
        before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
        if not before.exists():
            onnx.save(made, before)
        shape = [
            dim.dim_value
            for dim in made.graph.input[-1 if made.graph.input[0].name != "x" else 0].type.tensor_type.shape.dim
        ]
        x = random(400, *shape[1:], seed=5)  # more rows than any layer has columns
        np.savez(tmp_path / "x.npz", x=x)
        given = [str(before), "--ratio", str(ratio), "--calib", str(tmp_path / "x.npz"), "-o", str(after), "-q", *words]
        assert main(given) == 0
        found = onnx.load(after)
        if made.graph.output[0].type.tensor_type.HasField("shape"):
            onnx.checker.check_model(found, full_check=True)
        check_kept(made, found)
        assert after.stat().st_size < before.stat().st_size
        batch = shape[0] or 7
        want = outputs(before, x[:batch])
        np.testing.assert_allclose(outputs(after, x[:batch]), want, atol=tolerance * np.abs(want).max())
        return found

    return compile_


Compile = Callable[..., onnx.ModelProto]


def test_only_tensors_change(compiled: Compile) -> None:
    made = mlp()
    made.producer_name, made.doc_string, made.model_version = "someone", "their net", 7
    helper.set_model_props(made, {"labels": "a,b,c"})
    made.graph.node[0].doc_string = "a note"
    made.graph.value_info.append(helper.make_tensor_value_info("h1", TensorProto.FLOAT, [BATCH, 16]))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = compiled(made)
    assert [tensor.dims for tensor in found.graph.initializer] == [[6, 8], [8], [8, 3], [3]]
    assert not found.graph.value_info  # [batch, 16] is no longer true
    for part in (found, made):
        del part.graph.initializer[:], part.graph.value_info[:]
    assert found == made


def test_what_is_said_about_weights_stays(compiled: Compile) -> None:
    made = mlp(ir=10)
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for part in (*made.graph.initializer, *made.graph.input):
        part.doc_string = f"about {part.name}"
        helper.set_metadata_props(part, {"origin": part.name})
    found = compiled(made)
    for part in (*found.graph.initializer, *found.graph.input):
        assert part.doc_string == f"about {part.name}"
        assert [(entry.key, entry.value) for entry in part.metadata_props] == [("origin", part.name)]


def test_weights_in_constant_nodes(compiled: Compile) -> None:
    made = mlp()
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in made.graph.initializer]
    del made.graph.initializer[:]
    for node in reversed(constants):
        made.graph.node.insert(0, node)
    found = compiled(made)
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in made.graph.node]
    assert not found.graph.initializer


def test_weights_as_numbers_of_constant_nodes(compiled: Compile) -> None:
    made = mlp()
    (bias,) = (tensor for tensor in made.graph.initializer if tensor.name == "b")
    numbers = numpy_helper.to_array(bias).tolist()
    made.graph.initializer.remove(bias)
    made.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value_floats=numbers))
    found = compiled(made)
    assert len(found.graph.node[0].attribute[0].floats) == 8


def test_nodes_that_nobody_reads_go(compiled: Compile) -> None:
    made = mlp()
    nodes = [helper.make_node("Sigmoid", ["h1"], ["u"]), helper.make_node("Split", ["u"], ["s", "t"], axis=1)]
    made.graph.node.extend(nodes)
    assert len(compiled(made).graph.node) == len(made.graph.node) - len(nodes)


def test_an_output_that_nobody_reads_before_one_that_is_read(compiled: Compile) -> None:
    """The greatest values' places, not they themselves."""
    weights: Weights = {"k": ints(3), "v": dead(random(16, 5))}
    nodes = [
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
        helper.make_node("TopK", ["y", "k"], ["greatest", "places"], axis=1),
    ]
    made = conv_net(nodes, weights)
    made.graph.output.append(helper.make_tensor_value_info("places", TensorProto.INT64, [BATCH, 3]))
    assert compiled(made).graph.node[-1] == made.graph.node[-1]


@pytest.mark.parametrize("kind", ["Split", "TopK", "Scan"])
def test_an_output_that_nobody_reads_behind_one_that_is_read(kind: str, compiled: Compile) -> None:
    """How many there are says how large the parts are, or what a body has to give."""
    twice = body(
        ["e"], [helper.make_node(op, ["e"], [name]) for op, name in (("Relu", "r"), ("Tanh", "s"))], ["r", "s"]
    )
    axes: dict[str, Any] = {"scan_input_axes": [1], "scan_output_axes": [1, 1]}
    node = {
        "Split": helper.make_node("Split", ["m"], ["y", "unread"], axis=1),
        "TopK": helper.make_node("TopK", ["m", "three"], ["y", "unread"], axis=1),
        "Scan": helper.make_node("Scan", ["m"], ["y", "unread"], body=twice, num_scan_inputs=1, **axes),
    }[kind]
    weights: Weights = {"three": ints(3), "v": dead(random(16, 10 if kind == "Split" else 5))}
    nodes = [
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["m"]),
        node,
    ]
    made = conv_net(nodes, weights)
    if kind == "TopK":
        made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    else:
        del made.graph.initializer[2]
    compiled(made)


def test_weights_listed_as_inputs(compiled: Compile) -> None:
    made = mlp(ir=3)
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    found = compiled(made)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in found.graph.input}
    assert shapes == {"x": [0, 6], "w": [6, 8], "b": [8], "v": [8, 3], "c": [3]}


def test_external_data(compiled: Compile, tmp_path: Path) -> None:
    made = mlp()
    onnx.save(made, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="a.data")
    (tmp_path / "big").mkdir()
    x = random(60, 6, seed=5)
    np.savez(tmp_path / "x.npz", x=x)
    words = ["--ratio", "1.9", "--calib", str(tmp_path / "x.npz"), "-o", str(tmp_path / "b.onnx"), "-q"]
    assert main([str(tmp_path / "a.onnx"), *words]) == 0
    np.testing.assert_allclose(outputs(tmp_path / "b.onnx", x), outputs(tmp_path / "a.onnx", x), atol=1e-4)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, NEWEST - 1, NEWEST])
def test_opsets(compiled: Compile, opset: int) -> None:
    found = compiled(mlp(opset=opset))
    assert found.opset_import[0].version == opset


def test_half_precision(compiled: Compile) -> None:
    made = mlp()
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    found = compiled(made, tolerance=5e-3)
    assert {tensor.data_type for tensor in found.graph.initializer} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_in_half_precision_that_are_widened(
    kind: int, compiled: Compile, capsys: pytest.CaptureFixture[str]
) -> None:
    made = mlp()
    for tensor in made.graph.initializer:
        made.graph.node.insert(0, helper.make_node("Cast", [f"{tensor.name}16"], [tensor.name], to=TensorProto.FLOAT))
        half = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}16"))
    found = compiled(made, tolerance=2e-2)
    assert [tensor.dims for tensor in found.graph.initializer] == [[6, 8], [8], [8, 3], [3]]
    assert {tensor.data_type for tensor in found.graph.initializer} == {kind}
    assert not capsys.readouterr().out  # graphsurgeon would warn of types that numpy lacks


def test_an_output_whose_type_is_not_stated(compiled: Compile) -> None:
    made = mlp()
    made.graph.output[0].ClearField("type")
    assert not compiled(made).graph.output[0].HasField("type")


COMPUTED: dict[str, tuple[list[onnx.NodeProto], Weights]] = {
    "reshaped": (
        [helper.make_node("Reshape", ["a", "shape"], ["w"])],
        {"a": random(6, 16).reshape(-1), "shape": np.asarray([6, 16])},
    ),
    "scaled": (
        [helper.make_node("Mul", ["a", "half"], ["w"])],
        {"a": random(6, 16), "half": np.full(1, 0.5, np.float32)},
    ),
    "joined": (
        [helper.make_node("Concat", ["a", "d"], ["w"], axis=0)],
        {"a": random(6, 16)[:4], "d": random(6, 16)[4:]},
    ),
    "normalised": (
        [
            helper.make_node("ReduceL2", ["a"], ["length"], axes=[0], keepdims=1),
            helper.make_node("Div", ["a", "length"], ["unit"]),
            helper.make_node("Mul", ["unit", "gain"], ["w"]),
        ],
        {"a": random(6, 16), "gain": random(1, 16)},
    ),
}
"""Ways to compute the weight `w` of `mlp`."""


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize("way", COMPUTED)
def test_weights_that_the_graph_computes_from_constants(way: str, ir: int, compiled: Compile) -> None:
    """They are written as constants, and what computed them goes."""
    made = mlp(ir=ir)
    nodes, weights = COMPUTED[way]
    for k, node in enumerate(nodes):
        made.graph.node.insert(k, node)
    del made.graph.initializer[0]
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    if ir < 4:
        made.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in made.graph.initializer
        )
    found = compiled(made)
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [6, 8], "b": [8], "v": [8, 3], "c": [3]}
    assert [node.op_type for node in found.graph.node] == ["MatMul", "Add", "Relu", "Gemm"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_numbers_that_pass_through_half_precision(kind: int, compiled: Compile) -> None:
    """No weight is in half precision: the file rounds what the graph, in single, does not."""
    made = mlp()
    made.graph.node[0].input[0] = "x2"
    casts = [("x", "x1", kind), ("x1", "x2", TensorProto.FLOAT)]
    for place, (given, result, to) in enumerate(casts):
        made.graph.node.insert(place, helper.make_node("Cast", [given], [result], to=to))
    compiled(made, tolerance=2e-2)  # a few roundings of 4e-3


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_an_intercept_for_a_layer_without_bias(op: str, tmp_path: Path) -> None:
    """The reader of pruned channels gets a bias that takes over their mean; without intercepts it stays without."""
    flat, last = op == "Gemm", {"ConvTranspose": (16, 3, 1, 1)}.get(op, (3, 16, 1, 1))
    weights = {"w": random(16, 2, 1, 1), "v": random(16, 3) if flat else random(*last)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h0"], name="first"),
        helper.make_node("Relu", ["h0"], ["h"]),
        *([helper.make_node("Flatten", ["h"], ["rows"])] if flat else []),
        helper.make_node(op, ["rows" if flat else "h", "v"], ["y"], name="last"),
    ]
    size = 1 if flat else 3
    onnx.save(
        model(nodes, weights, [BATCH, 2, size, size], out=[BATCH, 3, *([] if flat else [size, size])]),
        tmp_path / "a.onnx",
    )
    x = random(200, 2, size, size) + 2
    np.savez(tmp_path / "x.npz", x=x)
    offset = {}
    for word, inputs in (("--rounds=0", 3), ("--no-intercept", 2)):
        after = tmp_path / f"{inputs}.onnx"
        words = [str(tmp_path / "a.onnx"), "--ratio", "3", "--calib", str(tmp_path / "x.npz"), "-o", str(after), "-q"]
        assert main([*words, word]) == 0
        (node,) = (node for node in onnx.load(str(after)).graph.node if node.name == "last")
        assert len(node.input) == inputs
        (first,) = (node for node in onnx.load(str(after)).graph.node if node.name == "first")
        assert len(first.input) == 2  # nothing to make up for, no bias of zeros
        difference = outputs(after, x) - outputs(tmp_path / "a.onnx", x)
        offset[inputs] = float(abs(difference.swapaxes(0, 1).reshape(3, -1).mean(1)).max())
    assert offset[3] < 1e-4 < offset[2]


def test_equal_biases_stored_once_go_their_own_ways(compiled: Compile) -> None:
    """Exporters store equal constants once; two layers that prune differently then need two."""
    weights = {"w": random(6, 16), "b": np.zeros(16, np.float32), "u": random(16, 16), "v": random(16, 3)}
    weights["u"][:12] = 0
    weights["v"][::2] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("Identity", ["b"], ["same"]),
        helper.make_node("Gemm", ["h1", "u", "same"], ["h2"]),
        helper.make_node("Sigmoid", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "v"], ["y"]),
    ]
    found = compiled(model(nodes, weights, [BATCH, 6], out=[BATCH, 3]), "--budget", "error", ratio=3.5, tolerance=1e-3)
    assert len({tensor.dims[0] for tensor in found.graph.initializer if len(tensor.dims) == 1}) == 2


def test_a_bias_that_a_graph_inside_reads_too_keeps_its_name(compiled: Compile) -> None:
    """The If is further from the input, so that the layer's bias comes first."""
    made = mlp()
    held = [helper.make_node(op, ["b"], [op]) for op in ("Neg", "Relu")]
    then, other = (
        helper.make_graph(
            [node], node.op_type, [], [helper.make_tensor_value_info(node.op_type, TensorProto.FLOAT, [16])]
        )
        for node in held
    )
    deep = [helper.make_node("Sigmoid", ["x" if k == 0 else f"s{k}"], [f"s{k + 1}"]) for k in range(9)]
    made.graph.node[-1].output[0] = "z"
    made.graph.node.extend(
        [
            *deep,
            helper.make_node("ReduceSum", ["s9"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "sum"], ["no"]),
            helper.make_node("If", ["no"], ["t"], then_branch=then, else_branch=other),
            helper.make_node("MatMul", ["t", "u"], ["r"]),
            helper.make_node("Add", ["z", "r"], ["y"]),
        ]
    )
    made.graph.initializer.append(numpy_helper.from_array(random(16, 3, seed=3), "u"))
    found = compiled(made, ratio=1.3)
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims["b"] == [16]
    assert dims["w"][1] < 16


def test_a_constant_that_is_an_output_keeps_its_name_too(compiled: Compile) -> None:
    made = mlp()
    made.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [16]))
    found = compiled(made, ratio=1.6)
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims["b"] == [16]
    assert dims["w"][1] < 16


def test_a_weight_that_two_nodes_share(compiled: Compile) -> None:
    weights = {"w": random(6, 16), "v": random(16, 3), "c": random(3)}
    weights["v"][::2] = 0
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("MatMul", ["x", "w"], ["a0"]),
        helper.make_node("MatMul", ["n", "w"], ["b0"]),
        helper.make_node("Relu", ["a0"], ["a"]),
        helper.make_node("Sigmoid", ["b0"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["y"]),
    ]
    found = compiled(model(nodes, weights, [BATCH, 6], out=[BATCH, 3]))
    assert [tensor.dims for tensor in found.graph.initializer] == [[6, 8], [8, 3], [3]]


def conv_net(nodes: list[onnx.NodeProto], weights: Weights, *, batch: Any = BATCH, **options: Any) -> onnx.ModelProto:
    """x (3 channels) -> 16 channels `h`, of which every other is dead -> the given nodes -> y."""
    weights = {"w": random(16, 3, 3, 3), "b": random(16), **weights}
    first = [
        helper.make_node("Conv", ["x", "w", "b"], ["h0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["h0"], ["h"], name="relu"),
    ]
    return model([*first, *nodes], weights, [batch, 3, 4, 4], out=[batch, 5], **options)


def dead(weight: NDArray[np.float32], positions: int = 1) -> NDArray[np.float32]:
    """Rows (input channels times positions) of every other channel zeroed."""
    weight.reshape(-1, 2, positions, *weight.shape[1:])[:, 0] = 0
    return weight


def ints(*values: int) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)


def test_a_reshape_constant_and_one_that_is_shared(compiled: Compile) -> None:
    weights: Weights = {"flat": ints(-1, 256), "v": dead(random(256, 5), 16)}
    nodes = [helper.make_node("Reshape", ["h", "flat"], ["f"]), helper.make_node("MatMul", ["f", "v"], ["y"])]
    found = compiled(conv_net(nodes, weights))
    (shape,) = (numpy_helper.to_array(t).tolist() for t in found.graph.initializer if t.data_type == TensorProto.INT64)
    assert shape == [-1, 128]


def test_size_arithmetic(compiled: Compile) -> None:
    """Shape - Gather - Mul - Concat: what it computes from channels that are gone comes out right, the batch stays."""
    weights: Weights = {"zero": ints(0), "one": ints(1), "area": ints(16), "v": dead(random(256, 5), 16)}
    nodes = [
        helper.make_node("Shape", ["h"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Mul", ["c", "area"], ["ca"]),
        helper.make_node("Concat", ["n", "ca"], ["flat"], axis=0),
        helper.make_node("Reshape", ["h", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights))
    assert [node.op_type for node in found.graph.node][2:] == [node.op_type for node in nodes]  # none corrected


def test_a_constant_piece_of_a_computed_shape(compiled: Compile) -> None:
    """Two of its sizes in one constant, of which one changes: another constant takes its place, no arithmetic."""
    weights: Weights = {"none": ints(0), "one": ints(1), "rest": ints(16, 16), "v": dead(random(16, 5))}
    nodes = [
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node("Slice", ["shape", "none", "one"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["h", "sizes"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights))
    assert "Where" not in {node.op_type for node in found.graph.node}


def test_a_size_that_scales_keeps_its_value(compiled: Compile) -> None:
    """A number computed from a size that shrinks, but that is not a size, stays what it was."""
    weights: Weights = {"one": ints(1), "flat": ints(0, -1), "v": dead(random(256, 5), 16)}
    nodes = [
        helper.make_node("Shape", ["h"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Cast", ["c"], ["cf"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["cf"], ["root"]),
        helper.make_node("Div", ["h", "root"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    compiled(conv_net(nodes, weights))


def test_a_computed_size_in_the_middle_of_a_shape(compiled: Compile) -> None:
    """The channels in a shape are a constant of a Concat whose other parts are computed."""
    weights: Weights = {
        "zero": ints(0),
        "c": ints(16),
        "area": ints(16),
        "v": dead(random(256, 5), 16),
        "flat": ints(0, -1),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "c", "area"], ["shape"], axis=0),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights))
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_param == BATCH


@pytest.mark.parametrize("filled", [False, True])
def test_split_slice_pad_and_resize(compiled: Compile, *, filled: bool) -> None:
    """Padded channels go too, whether the file spells what they are filled with or not."""
    weights: Weights = {
        "parts": ints(6, 10),
        "starts": ints(2),
        "ends": ints(10),
        "axes": ints(1),
        "pads": ints(0, 0, 0, 0, 0, 2, 0, 0),
        **({"zero": np.asarray(0, np.float32)} if filled else {}),
        "sizes": ints(1, 16, 2, 2),
        "flat": ints(0, -1),
        "v": dead(random(64, 5), 4),
    }
    nodes = [
        helper.make_node("Split", ["h", "parts"], ["left", "right"], axis=1),
        helper.make_node("Slice", ["right", "starts", "ends", "axes"], ["middle"]),
        helper.make_node("Pad", ["middle", "pads", *(["zero"] if filled else [])], ["padded"]),
        helper.make_node("Concat", ["left", "padded"], ["all"], axis=1),
        helper.make_node("Resize", ["all", "", "", "sizes"], ["small"], mode="nearest"),
        helper.make_node("Reshape", ["small", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    compiled(conv_net(nodes, weights, batch=1), ratio=1.5)


@pytest.mark.parametrize("opset", [11, 13, 19])
def test_resize_to_sizes_with_empty_scales(opset: int, compiled: Compile) -> None:
    """As older exporters spell it."""
    weights: Weights = {"v": dead(random(16, 5)), "none": np.zeros(0, np.float32), "hw": ints(8, 8)}
    weights |= {"zero": ints(0), "two": ints(2), "out": ints(0, -1)}
    nodes = [
        helper.make_node("Shape", ["h"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two"], ["nc"]),
        helper.make_node("Concat", ["nc", "hw"], ["size"], axis=0),
        helper.make_node("Resize", ["h", "none", "none", "size"], ["r"], mode="linear"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Reshape", ["p", "out"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights, opset=opset))
    assert [tensor.name for tensor in found.graph.initializer].count("none") == 1


def test_channels_last(compiled: Compile) -> None:
    """tf2onnx leaves transposes around every convolution."""
    weights: Weights = {"k": dead(random(16, 8, 1, 1)).swapaxes(0, 1).copy(), "v": random(8, 5)}
    nodes = [
        helper.make_node("Transpose", ["h"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Tanh", ["last"], ["t"]),
        helper.make_node("Transpose", ["t"], ["again"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["again", "k"], ["g"], kernel_shape=[1, 1]),
        helper.make_node("Transpose", ["g"], ["g2"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["g2"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    compiled(conv_net(nodes, weights), "--only", "first", ratio=1.5, tolerance=1e-4)  # the ridge


def test_a_batch_norm_folded_into_a_product_and_a_sum(compiled: Compile) -> None:
    weights: Weights = {"scale": random(1, 16, 1, 1), "shift": random(16, 1, 1), "v": dead(random(16, 5))}
    nodes = [
        helper.make_node("Mul", ["h", "scale"], ["s"]),
        helper.make_node("Add", ["shift", "s"], ["t"]),
        helper.make_node("LeakyRelu", ["t"], ["u"]),
        helper.make_node("ReduceMean", ["u"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert (dims["scale"], dims["shift"], dims["v"]) == ([1, 8, 1, 1], [8, 1, 1], [8, 5])


def test_whole_groups_of_a_normalisation_go(compiled: Compile) -> None:
    """Four groups of four channels, two of which nobody reads."""
    weights: Weights = {"scale": random(16), "shift": random(16, seed=1), "v": random(16, 5)}
    weights["v"][4:12] = 0
    nodes = [
        helper.make_node("GroupNormalization", ["h", "scale", "shift"], ["n"], num_groups=4, name="norm"),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights, opset=21))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "scale": [8], "shift": [8], "v": [8, 5]}
    (norm,) = (node for node in found.graph.node if node.op_type == "GroupNormalization")
    assert [(a.name, a.i) for a in norm.attribute] == [("num_groups", 2)]


def test_groups_of_a_convolution_go_with_those_of_a_normalisation(compiled: Compile) -> None:
    weights: Weights = {"scale": random(16), "shift": random(16, seed=1), "g": random(16, 4, 3, 3), "v": random(16, 5)}
    weights["v"][4:12] = 0
    nodes = [
        helper.make_node("GroupNormalization", ["h", "scale", "shift"], ["n"], num_groups=4, name="norm"),
        helper.make_node("Conv", ["n", "g"], ["c"], group=4, name="inner"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights, opset=21))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "scale": [8], "shift": [8], "g": [8, 4, 3, 3], "v": [8, 5]}
    (inner,) = (node for node in found.graph.node if node.name == "inner")
    assert ("group", 2) in [(a.name, a.i) for a in inner.attribute]


def test_a_transposed_convolution_by_depth(compiled: Compile) -> None:
    weights: Weights = {"deep": random(16, 2, 2, 2), "v": dead(random(32, 5), 2)}
    nodes = [
        helper.make_node("ConvTranspose", ["h", "deep"], ["z"], group=16, strides=[2, 2], name="deep"),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, weights))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "deep": [8, 2, 2, 2], "v": [16, 5]}


def test_a_tensor_that_only_tells_the_type(compiled: Compile) -> None:
    """And has channels of its own, of another number."""
    weights: Weights = {"k": random(6, 16, 1, 1), "c": random(6), "v": dead(random(16, 5)), "u": random(6, 5)}
    nodes = [
        helper.make_node("Conv", ["h", "k", "c"], ["other"], name="other"),
        helper.make_node("CastLike", ["h", "other"], ["z"]),
        *(helper.make_node("ReduceMean", [name], [f"m_{name}"], axes=[2, 3], keepdims=0) for name in ("z", "other")),
        helper.make_node("MatMul", ["m_z", "v"], ["p"]),
        helper.make_node("MatMul", ["m_other", "u"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    weights["k"][:, ::2] = weights["u"][::2] = 0
    found = compiled(conv_net(nodes, weights, opset=17), ratio=2.1)
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "k": [3, 8, 1, 1], "c": [3], "v": [8, 5], "u": [3, 5]}


def attention(keys: int, outputs: list[str]) -> onnx.ModelProto:
    """Four query heads of four, of which the first `4 // keys` are dead; so many key heads; one token a position."""
    weights: Weights = {"out": ints(0, -1), "v": random(16, 5)}
    weights["v"][: 16 // keys] = 0
    nodes = []
    for name, heads in (("query", 4), ("key", keys), ("value", keys)):
        weights |= {f"w_{name}": random(4 * heads, 16, 1, 1, seed=len(name)), f"to_{name}": ints(0, heads, 4, 16)}
        nodes += [
            helper.make_node("Conv", ["h", f"w_{name}"], [f"c_{name}"], name=name),
            helper.make_node("Reshape", [f"c_{name}", f"to_{name}"], [f"r_{name}"]),
            helper.make_node("Transpose", [f"r_{name}"], [name], perm=[0, 1, 3, 2]),
        ]
    nodes += [
        helper.make_node("Attention", ["query", "key", "value"], outputs),
        helper.make_node("ReduceMean", ["z", "axes"], ["m"], keepdims=0),
        helper.make_node("Reshape", ["m", "out"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    return conv_net(nodes, {**weights, "axes": ints(2)}, opset=23, ir=10)


@pytest.mark.parametrize("keys", [2, 4])
def test_a_key_head_goes_with_the_queries_that_it_serves(keys: int, compiled: Compile) -> None:
    found = compiled(attention(keys, ["z"]), "--skip", "first", ratio=1.15, tolerance=1e-4)  # the ridge
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims["w_key"] == dims["w_value"] == [4 * (keys - 1), 16, 1, 1]
    assert dims["w_query"] == [16 - 16 // keys, 16, 1, 1]


def test_attention_that_hands_on_its_keys_stays(tmp_path: Path) -> None:
    made = attention(2, ["z", "present"])
    made.graph.output.append(helper.make_tensor_value_info("present", TensorProto.FLOAT, [BATCH, 2, 16, 4]))
    assert "query: Attention is used in a way that cannot be followed" in frozen_reasons(made, tmp_path / "a.onnx")


def test_attention_whose_heads_are_attributes_stays(compiled: Compile) -> None:
    """Shape inference says that its output is empty where hidden sizes are left open, as in a part of a network."""
    weights = {"w": random(8, 16), "v": dead(random(16, 8)), "u": random(8, 3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h0"], "first"),
        helper.make_node("Relu", ["h0"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["z"], "second"),
        helper.make_node("Attention", ["z", "z", "z"], ["a"], q_num_heads=2, kv_num_heads=2),
        helper.make_node("MatMul", ["a", "u"], ["y"], "last"),
    ]
    found = compiled(model(nodes, weights, [BATCH, 5, 8], opset=23, ir=10, out=[BATCH, 5, 3]), ratio=1.3)
    assert next(tensor.dims[1] for tensor in found.graph.initializer if tensor.name == "w") < 16


def test_elementwise_operators(compiled: Compile) -> None:
    """In a chain; each gives a number for what the one before gives."""
    chain = ["Sinh", "Asinh", "Cosh", "Acosh", "Atan", "Tan", "Sigmoid", "Asin", "Cos", "Acos", "Tanh", "Shrink"]
    nodes = [helper.make_node(op, [f"t{k}"], [f"t{k + 1}"]) for k, op in enumerate(chain)]
    nodes[0].input[0], last = "h", f"t{len(chain)}"
    nodes += [
        *(
            helper.make_node(op, [last, "h"], [op])
            for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
        ),
        *(helper.make_node(op, [last], [op]) for op in ("IsNaN", "IsInf")),
        helper.make_node("And", ["Less", "LessOrEqual"], ["j"]),
        helper.make_node("Xor", ["Greater", "GreaterOrEqual"], ["k"]),
        helper.make_node("Or", ["j", "k"], ["l"]),
        helper.make_node("Or", ["Equal", "IsNaN"], ["m"]),
        helper.make_node("Or", ["l", "m"], ["n"]),
        helper.make_node("Or", ["n", "IsInf"], ["o"]),
        helper.make_node("Not", ["o"], ["p"]),
        helper.make_node("Where", ["p", "h", last], ["q"]),
        helper.make_node("Mean", ["q", "h"], ["r"]),
        helper.make_node("Mod", ["r", "four"], ["s"], fmod=1),
        helper.make_node("ReduceL1", ["s"], ["sum"], axes=[2, 3], keepdims=0),
        helper.make_node("GlobalLpPool", ["r"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Add", ["sum", "flat"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["y"]),
    ]
    weights: Weights = {"four": np.asarray(4, np.float32), "v": dead(random(16, 5))}
    weights |= {"w": random(16, 3, 3, 3), "b": random(16)}
    for first in ("w", "b"):
        weights[first][::2] = 0  # else what nobody reads may still be what tells most
    found = compiled(conv_net(nodes, weights, opset=17))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "four": [], "v": [8, 5]}


def test_places_that_the_network_finds(compiled: Compile) -> None:
    """Positions of every channel that are looked up, sorted and written again."""
    nodes = [
        helper.make_node("TopK", ["h", "all"], ["largest", "places"], axis=3),
        helper.make_node("GatherElements", ["h", "places"], ["sorted"], axis=3),
        helper.make_node("ScatterElements", ["h", "places", "largest"], ["back"], axis=3),
        helper.make_node("ArgMin", ["h"], ["least"], axis=3),
        helper.make_node("ArgMax", ["h"], ["most"], axis=3),
        helper.make_node("Add", ["least", "most"], ["both"]),
        helper.make_node("Cast", ["both"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sorted", "back"], ["product"]),
        helper.make_node("Sub", ["product", "numbers"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    found = compiled(conv_net(nodes, {"all": ints(4), "v": dead(random(16, 5))}, opset=17))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "all": [1], "v": [8, 5]}


def test_values_that_are_written_to_places(compiled: Compile) -> None:
    nodes = [
        helper.make_node("Transpose", ["h"], ["rows"], perm=[2, 3, 0, 1]),
        helper.make_node("Gather", ["rows", "one"], ["some"], axis=0),
        helper.make_node("ScatterND", ["rows", "places", "some"], ["put"]),
        helper.make_node("Mul", ["put", "rows"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["m"], axes=[0, 1], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    weights: Weights = {"one": ints(2), "places": ints(1).reshape(1, 1), "v": dead(random(16, 5))}
    found = compiled(conv_net(nodes, weights, opset=17))
    dims = {tensor.name: list(tensor.dims) for tensor in found.graph.initializer}
    assert dims == {"w": [8, 3, 3, 3], "b": [8], "one": [1], "places": [1, 1], "v": [8, 5]}


def test_symbolic_sizes(tmp_path: Path) -> None:
    """Height and width stay free: the smaller file runs on images of another size."""
    weights: Weights = {"w": random(16, 3, 3, 3), "b": random(16), "v": dead(random(16, 5))}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h0"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    made = model(nodes, weights, [BATCH, 3, "height", "width"], out=[BATCH, 5])
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(made, before)
    np.savez(tmp_path / "x.npz", x=random(40, 3, 6, 6))
    assert main([str(before), "--ratio", "1.9", "--calib", str(tmp_path / "x.npz"), "-o", str(after), "-q"]) == 0
    check_kept(made, onnx.load(after))
    for size in ((6, 6), (9, 4)):
        x = random(2, 3, *size)
        np.testing.assert_allclose(outputs(after, x), outputs(before, x), rtol=1e-3, atol=1e-4)


def test_a_fixed_batch(compiled: Compile) -> None:
    """A batch size built into a reshape: calibration runs with just that, and the file still takes just that."""
    weights: Weights = {"flat": ints(4, 256), "v": dead(random(256, 5), 16)}
    nodes = [helper.make_node("Reshape", ["h", "flat"], ["f"]), helper.make_node("MatMul", ["f", "v"], ["y"])]
    made = conv_net(nodes, weights, batch=4)
    compiled(made)
    assert next(d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim) == 4


@pytest.mark.parametrize("batch", [1, 4, 250])
def test_a_fixed_batch_without_calibration(batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The made-up inputs are as many as it takes, be it more than are made up for others; 1 is stated nowhere."""
    weights: Weights = {"flat": ints(batch, 256), "v": dead(random(256, 5), 16)}
    nodes = [helper.make_node("Reshape", ["h", "flat"], ["f"]), helper.make_node("MatMul", ["f", "v"], ["y"])]
    onnx.save(conv_net(nodes, weights, batch=BATCH if batch == 1 else batch), tmp_path / "a.onnx")
    assert main([str(tmp_path / "a.onnx"), "--explain"]) == 0
    assert "a.onnx: 1 group of channels can be pruned" in capsys.readouterr().out
    assert main([str(tmp_path / "a.onnx"), "--ratio", "1.9", "-o", str(tmp_path / "b.onnx"), "-q"]) == 0
    x = random(batch, 3, 4, 4)
    want = outputs(tmp_path / "a.onnx", x)
    # What went is dead: float32 rounding is left.
    np.testing.assert_allclose(outputs(tmp_path / "b.onnx", x), want, atol=1e-5 * np.abs(want).max())


TOO_FEW = "the network takes batches of exactly 8, and there are 5 inputs; give at least 8"
"""What is said, whichever inputs they are."""


def batches_of_8() -> onnx.ModelProto:
    weights: Weights = {"flat": ints(8, 256), "v": dead(random(256, 5), 16)}
    nodes = [helper.make_node("Reshape", ["h", "flat"], ["f"]), helper.make_node("MatMul", ["f", "v"], ["y"])]
    return conv_net(nodes, weights, batch=8)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--calib", "--ratio 1.9 --calib few.npz"),
        ("--calib", "--explain --calib few.npz"),
        ("--eval", "--ratio 1.9 --calib many.npz --eval few.npz"),
        ("--eval", "--plan a.plan --calib many.npz --eval few.npz"),
        ("--verify", "--max-drop 1 --calib many.npz --verify few.npz"),
        ("--verify", "--ratio 1.9 --budget accuracy --calib many.npz --verify few.npz"),
    ],
)
def test_fewer_inputs_than_a_batch(
    option: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(batches_of_8(), "a.onnx")
    Plan({}, (), {}, (), ()).save("a.plan")
    for name, count in (("few.npz", 5), ("many.npz", 32)):
        np.savez(name, x=random(count, 3, 4, 4), y=np.zeros(count, np.int64))
    drawn = "b.svg" if "--explain" in words else "b.onnx"
    assert main(["a.onnx", *words.split(), "-o", drawn, "-q"]) == 2
    assert capsys.readouterr().err == f"subprune-compile: error: {option}: {TOO_FEW}\n"


def test_fewer_inputs_than_a_batch_in_python(tmp_path: Path) -> None:
    onnx.save(batches_of_8(), tmp_path / "a.onnx")
    network = load_model(tmp_path / "a.onnx").module
    few, many = (torch.from_numpy(random(count, 3, 4, 4)) for count in (5, 32))
    pair = few, torch.zeros(5, dtype=torch.int64)
    for call in (
        lambda: subprune_fx.prune(network, few, ratio=1.9),
        lambda: subprune_fx.prune(network, many, ratio=1.9, evaluation=pair),
        lambda: subprune_fx.prune(network, many, max_drop=1.0, verification=pair),
        lambda: subprune_fx.repeat(network, Plan({}, (), {}, (), ()), many, evaluation=pair),
        lambda: subprune_fx.explain(network, few),
    ):
        with pytest.raises(SubpruneError, match=TOO_FEW):
            call()


def test_a_mean_over_everything(compiled: Compile) -> None:
    """Of no dimension; times zero, since it changes with the channels that it is taken over."""
    weights: Weights = {"zero": np.zeros((), np.float32), "v": dead(random(16, 5))}
    nodes = [
        helper.make_node("ReduceMean", ["h"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["nothing"]),
        helper.make_node("Add", ["h", "nothing"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["p"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    compiled(conv_net(nodes, weights, batch=1))


def test_a_stated_batch_that_binds_nothing(tmp_path: Path) -> None:
    made = conv_net([], {})
    made.graph.node.append(helper.make_node("GlobalAveragePool", ["h"], ["y"]))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(made, tmp_path / "a.onnx")
    module = load_model(tmp_path / "a.onnx").module
    assert fixed_batch(resolve_batch(module, torch.randn(3, 3, 4, 4))) is None


def test_a_stated_batch_on_the_command_line(compiled: Compile) -> None:
    """onnxruntime insists on it, bound to it or not."""
    made = mlp()
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    compiled(made)


def test_shapes_that_are_not_stated(compiled: Compile) -> None:
    """The checker wants them, onnxruntime does without."""
    made = mlp()
    made.graph.output[0].type.tensor_type.ClearField("shape")
    compiled(made)


def test_positions_beside_scores(compiled: Compile) -> None:
    """As a detector's selection: how many depends on the input."""
    made = mlp()
    made.graph.node.append(helper.make_node("NonZero", ["y"], ["places"]))
    made.graph.output.append(helper.make_tensor_value_info("places", TensorProto.INT64, [2, "count"]))
    compiled(made)


@pytest.mark.parametrize("budget", ["output", "error"])
def test_a_detector_whose_selection_comes_first(budget: str, tmp_path: Path) -> None:
    """Boxes and scores are compared; of the selection the pruned network gives more or fewer."""
    weights: Weights = {
        "k": random(7, 16, 1, 1),
        "flat": ints(1, 7, 16),
        "parts": ints(4, 3),
        "most": ints(5),
        "overlap": np.full(1, 0.5, np.float32),
        "least": np.full(1, 0.4, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["h", "k"], ["all"], name="last"),
        helper.make_node("Reshape", ["all", "flat"], ["rows"]),
        helper.make_node("Split", ["rows", "parts"], ["sides", "scores"], axis=1),
        helper.make_node("Transpose", ["sides"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["y"]),
    ]
    made = conv_net(nodes, weights, batch=1)
    del made.graph.output[:]
    selected = helper.make_tensor_value_info("y", TensorProto.INT64, ["count", 3])
    made.graph.output.extend([selected, helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 16, 4])])
    onnx.save(made, tmp_path / "a.onnx")
    x = random(40, 3, 4, 4)
    np.savez(tmp_path / "x.npz", x=x)
    files = ["--calib", str(tmp_path / "x.npz"), "-o", str(tmp_path / "b.onnx"), "--json", str(tmp_path / "r.json")]
    assert main([str(tmp_path / "a.onnx"), "--ratio", "1.8", "--budget", budget, *files, "-q"]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["agreement"] is None
    assert 0 < report["change"] < 1
    counts = {name: [len(outputs(tmp_path / name, x[k : k + 1])) for k in range(40)] for name in ("a.onnx", "b.onnx")}
    assert counts["a.onnx"] != counts["b.onnx"]


def test_names_that_mean_something_in_python(compiled: Compile) -> None:
    made = mlp()
    renamed = {
        "w": "self",
        "b": "for",
        "v": "forward",
        "c": "0 a/b:0",
        "h0": "graph",
        "h1": "__class__",
        "h2": "lambda",
    }
    for tensor in made.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node, name in zip(made.graph.node, ("", "None", "training", "x"), strict=True):
        node.name = name
        for names in (node.input, node.output):
            names[:] = [renamed.get(one, one) for one in names]
    assert [tensor.name for tensor in compiled(made).graph.initializer] == ["self", "for", "forward", "0 a/b:0"]


def test_nodes_in_any_order(compiled: Compile) -> None:
    """As onnxruntime takes them."""
    made = mlp()
    nodes = list(reversed([onnx.NodeProto.FromString(node.SerializeToString()) for node in made.graph.node]))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    found = compiled(made)
    assert [node.name for node in found.graph.node] == ["first", "bias", "relu", "last"]


def test_functions_are_inlined(compiled: Compile) -> None:
    made = mlp()
    body = [helper.make_node("Gemm", ["p", "q", "r"], ["s"])]
    made.functions.append(helper.make_function("own", "Layer", ["p", "q", "r"], ["s"], body, made.opset_import))
    made.graph.node[3].domain, made.graph.node[3].op_type = "own", "Layer"
    made.opset_import.append(helper.make_opsetid("own", 1))
    found = compiled(made)
    assert [node.op_type for node in found.graph.node] == ["MatMul", "Add", "Relu", "Gemm"]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_weights_become_dense(compiled: Compile, *, flat: bool, constant: bool) -> None:
    """The first layer is sparse: half of its weights, so that dense it is no larger than values and positions were."""
    made = mlp()
    full = numpy_helper.to_array(made.graph.initializer.pop(0)).copy()
    full[:, ::2] = 0
    places = np.flatnonzero(full) if flat else np.argwhere(full)
    values = numpy_helper.from_array(full[full != 0], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "w_places"), full.shape)
    if constant:
        made.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    else:
        made.graph.sparse_initializer.append(sparse)
    found = compiled(made)
    assert not found.graph.sparse_initializer


def test_bytes_are_those_of_the_file_that_was_given(tmp_path: Path) -> None:
    """Of a sparse layer: dense, as it is when it is measured, it is five times as large."""
    made = mlp(dead=False)
    full = numpy_helper.to_array(made.graph.initializer.pop(0)).copy()
    full[:, 2:] = 0
    values = numpy_helper.from_array(full[full != 0], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.flatnonzero(full), "places"), full.shape)
    made.graph.sparse_initializer.append(sparse)
    onnx.save(made, tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size
    np.savez(tmp_path / "x.npz", x=random(100, 6))
    words = [str(tmp_path / "a.onnx"), "--calib", str(tmp_path / "x.npz"), "-o", str(tmp_path / "b.onnx"), "-q"]
    assert main([*words, "--target", "size", "--ratio", "1.2", "--json", str(tmp_path / "r.json")]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["files"]
    assert row["bytes_before"] == size
    assert row["bytes"] == (tmp_path / "b.onnx").stat().st_size <= size / 1.2


def test_a_weight_that_only_a_subgraph_reads_besides_its_layer_stays_whole(tmp_path: Path) -> None:
    """No channel reaches the If: what it reads of the weight would change all the same."""
    inner = helper.make_graph(
        [helper.make_node("ReduceSum", ["v"], ["t"], keepdims=0)],
        "inner",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [])],
    )
    made = mlp()
    made.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    made.graph.node[3].output[0] = "z"
    made.graph.node.append(helper.make_node("If", ["yes"], ["i"], then_branch=inner, else_branch=inner))
    made.graph.node.append(helper.make_node("Add", ["z", "i"], ["y"]))
    onnx.save(made, tmp_path / "a.onnx")
    x = torch.randn(3, 6)
    with pytest.raises(subprune_fx.SubpruneError, match="first: weight v is also read as a plain tensor"):
        analyse(resolve_batch(load_model(tmp_path / "a.onnx").module, x), x)


def frozen_reasons(made: onnx.ModelProto, path: Path) -> str:
    onnx.save(made, path)
    x = torch.randn(3, 3, 4, 4)
    network = analyse(resolve_batch(load_model(path).module, x), x)
    return "; ".join(f"{item.name}: {item.reason}" for item in network.channels.frozen)


def branch(name: str, op: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, ["h"], [name])], name, [], [out])


def inner_conv(name: str) -> onnx.GraphProto:
    """A branch that reads a weight of the outer graph which nothing else reads."""
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Conv", ["h", "inner"], [name], group=16)], name, [], [out])


def body(inputs: list[str], nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
    """Of a loop: a counter and a condition come first."""
    kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "on": TensorProto.BOOL}
    infos = {
        name: helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), [] if name in kinds else None)
        for name in (*inputs, *outputs)
    }
    return helper.make_graph(nodes, "body", [infos[name] for name in inputs], [infos[name] for name in outputs])


LOOP = body(
    ["i", "go", "e"],
    [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["e"], ["r"])],
    ["on", "r"],
)
SCAN = body(["e"], [helper.make_node("Relu", ["e"], ["r"])], ["r"])
QUANTISED = {"scale": np.float32(0.1), "zero_point": np.uint8(100)}
SCALE = list(QUANTISED)
FROZEN: dict[str, tuple[list[onnx.NodeProto], Weights, str]] = {
    "If": (
        [helper.make_node("If", ["yes"], ["z"], then_branch=branch("z1", "Relu"), else_branch=branch("z2", "Tanh"))],
        {"yes": np.asarray(True)},
        "first: If",
    ),
    "If with a weight of its own": (
        [helper.make_node("If", ["yes"], ["z"], then_branch=inner_conv("z1"), else_branch=branch("z2", "Tanh"))],
        {"yes": np.asarray(True), "inner": np.ones((16, 1, 1, 1), np.float32)},
        "first: If",
    ),
    "QDQ": (
        [
            helper.make_node("QuantizeLinear", ["h", "scale", "zero_point"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["z"]),
        ],
        {key: np.asarray(value) for key, value in QUANTISED.items()},
        "first: the network is quantised already",
    ),
    "QLinearConv": (
        [
            helper.make_node("QuantizeLinear", ["h", "scale", "zero_point"], ["q"]),
            helper.make_node("QLinearConv", ["q", *SCALE, "wq", *SCALE, *SCALE], ["qz"], name="inner"),
            helper.make_node("DequantizeLinear", ["qz", *SCALE], ["z"]),
        ],
        {**{key: np.asarray(value) for key, value in QUANTISED.items()}, "wq": np.full((16, 16, 1, 1), 90, np.uint8)},
        "first: the network is quantised already",
    ),
    "Loop": (
        [helper.make_node("Loop", ["times", "yes", "h"], ["z"], body=LOOP)],
        {"times": np.asarray(2), "yes": np.asarray(True)},
        "first: Loop",
    ),
    "Scan": (
        [
            helper.make_node(
                "Scan", ["h"], ["z"], body=SCAN, num_scan_inputs=1, scan_input_axes=[2], scan_output_axes=[2]
            )
        ],
        {},
        "first: Scan",
    ),
    "DequantizeLinear": (
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["wq"]),
            helper.make_node("Conv", ["h", "wq"], ["z"], name="inner"),
        ],
        {"q": np.full((16, 16, 1, 1), 9, np.int8), "scale": np.asarray(np.float32(0.1))},
        "first: Conv has a computed weight",
    ),
    "a weight that is much larger than what it is computed from": (
        [
            helper.make_node("Expand", ["small", "shape"], ["large"]),
            helper.make_node("Conv", ["h", "large"], ["z"], group=16, name="inner"),
        ],
        {"small": random(16, 1, 1, 1, seed=1), "shape": ints(16, 1, 2, 1)},
        "first: Conv has a computed weight",
    ),
    "a weight that is computed from what something else reads": (
        [
            helper.make_node("Reshape", ["gains", "shape"], ["filters"]),
            helper.make_node("Conv", ["h", "filters"], ["filtered"], group=16, name="inner"),
            helper.make_node("Mul", ["filtered", "gains"], ["z"]),
        ],
        {"gains": random(1, 16, 1, 1), "shape": ints(16, 1, 1, 1)},
        "first: Conv has a computed weight",
    ),
    "LRN": ([helper.make_node("LRN", ["h"], ["z"], size=3)], {}, "first: LRN is not in the op table"),
    "ConvTranspose to a given size": (
        [helper.make_node("ConvTranspose", ["h", "t"], ["z"], output_shape=[4, 4], group=16, name="inner")],
        {"t": random(16, 1, 1, 1, seed=1)},
        "first: ConvTranspose is used in a way that cannot be followed",
    ),
}


def partly_frozen(name: str) -> onnx.ModelProto:
    """Channels that a node of this kind reads, and eight behind it of which every other is dead."""
    nodes, weights, _ = FROZEN[name]
    rest = [
        helper.make_node("Conv", ["z", "k"], ["g"], kernel_shape=[1, 1], name="second"),
        helper.make_node("GlobalAveragePool", ["g"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    return conv_net([*nodes, *rest], {**weights, "k": random(8, 16, 1, 1), "v": dead(random(8, 5))})


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_a_reason(name: str, tmp_path: Path) -> None:
    assert FROZEN[name][2] in frozen_reasons(partly_frozen(name), tmp_path / "a.onnx")


def test_a_convolution_whose_weight_is_kept_in_another_order_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["last"], ["first"], perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["h", "first"], ["z"], name="inner"),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    made = conv_net(nodes, {"last": random(1, 1, 16, 8), "v": random(8, 5)})
    with pytest.raises(
        subprune_fx.SubpruneError, match="first: Conv reads its weight with dimensions in another order"
    ):
        frozen_reasons(made, tmp_path / "a.onnx")


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_behind_a_frozen_node_is_pruned(name: str, compiled: Compile) -> None:
    made = partly_frozen(name)
    found = compiled(made, ratio=1.14)
    sizes = {tensor.name: tensor.dims for tensor in found.graph.initializer}
    assert (sizes["w"], sizes["k"], sizes["v"]) == ([16, 3, 3, 3], [4, 16, 1, 1], [4, 5])


def test_a_recurrent_layer_stays(compiled: Compile, tmp_path: Path) -> None:
    """And what follows it is pruned."""
    weights: Weights = {
        "flat": ints(0, 16, 16),
        "W": random(1, 16, 16),
        "R": random(1, 16, 4),
        "k": random(64, 8),
        "v": dead(random(8, 5)),
        "out": ints(0, -1),
    }
    nodes = [
        helper.make_node("Reshape", ["h", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "W", "R"], ["l"], hidden_size=4),
        helper.make_node("Transpose", ["l"], ["z"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["z", "out"], ["f"]),
        helper.make_node("MatMul", ["f", "k"], ["g"], name="second"),
        helper.make_node("Relu", ["g"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    made = conv_net(nodes, weights)
    found = compiled(made, ratio=1.2)
    sizes = {tensor.name: tensor.dims for tensor in found.graph.initializer}
    assert (sizes["w"], sizes["W"], sizes["k"], sizes["v"]) == ([16, 3, 3, 3], [1, 16, 16], [64, 4], [4, 5])
    assert "first: LSTM: its state stays whole, prune the PyTorch" in frozen_reasons(made, tmp_path / "again.onnx")


def test_a_recurrent_layer_that_no_channels_reach_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("GRU", ["x", "W", "R"], ["l"], hidden_size=4, name="cell"),
        helper.make_node("Reshape", ["l", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "k"], ["y"], name="last"),
    ]
    weights: Weights = {"W": random(1, 12, 6), "R": random(1, 12, 4), "flat": ints(-1, 4), "k": random(4, 3)}
    onnx.save(model(nodes, weights, [BATCH, 1, 6]), tmp_path / "a.onnx")
    said = ("cell: GRU: its state stays whole, prune the PyTorch network to make it smaller", "last: ")
    np.save(tmp_path / "x.npy", random(8, 1, 6))
    assert main([str(tmp_path / "a.onnx"), "--explain"]) == 0
    assert all(words in capsys.readouterr().out for words in said[:1])
    arguments = ["--ratio", "2", "--calib", str(tmp_path / "x.npy"), "-o", str(tmp_path / "b.onnx")]
    assert main([str(tmp_path / "a.onnx"), *arguments]) == 2
    assert f"nothing to prune ({said[0]}; {said[1]}" in capsys.readouterr().err


def test_a_quantised_network_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights: Weights = {"w": random(6, 16).round().astype(np.int8), "v": random(16, 3).round().astype(np.int8)}
    weights |= {"s": np.asarray(0.5, np.float32), "z": np.asarray(0, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
        helper.make_node("DequantizeLinear", ["v", "s", "z"], ["vf"]),
        helper.make_node("MatMul", ["x", "wf"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "s", "z"], ["hf"]),
        helper.make_node("MatMul", ["hf", "vf"], ["y"]),
    ]
    onnx.save(model(nodes, weights, [BATCH, 6]), tmp_path / "whole.onnx")
    nodes.append(helper.make_node("Add", ["y0", "b"], ["y"]))
    nodes[-2].output[0], weights["b"] = "y0", random(3)
    onnx.save(model(nodes, weights, [BATCH, 6]), tmp_path / "a.onnx")
    np.save(tmp_path / "x.npy", random(8, 6))
    said = " and 3 more: the network is quantised already, prune the float network and then --quantize int8"
    assert main([str(tmp_path / "a.onnx"), "--explain"]) == 0
    assert said in capsys.readouterr().out
    arguments = ["--ratio", "2", "--calib", str(tmp_path / "x.npy"), "-o", str(tmp_path / "b.onnx")]
    assert main([str(tmp_path / "a.onnx"), *arguments]) == 2
    assert f"{said}); only" in capsys.readouterr().err
    assert main([str(tmp_path / "whole.onnx"), "--explain"]) == 2
    assert f"no float weights: {said.partition(': ')[2]}" in capsys.readouterr().err
