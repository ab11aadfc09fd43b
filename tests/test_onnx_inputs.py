"""ONNX files with several inputs: calibrated on arrays by the file's names, in any order."""

from __future__ import annotations

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
from subprune_fx.passes.onnx_rewrite import write_back

Array = NDArray[Any]
TOKENS, VECTOR = "in.tokens:0", "vector"
WORDS = 40


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def network(
    kind: int = TensorProto.INT64, batch: int | str = "n", tokens: str = TOKENS, vector: str = VECTOR
) -> onnx.ModelProto:
    """Words, looked up and averaged, beside a vector; 32 neurons, half of which nobody reads; two outputs.

    The Reshape spells the batch by Shape - Gather - Concat, as exporters do.
    """
    weights: dict[str, Array] = {"table": random(9, 8), "w": random(12, 32), "b": random(32), "v": random(32, 3)}
    weights |= {"c": random(3), "zero": np.array([0]), "rest": np.array([32])}
    weights["v"][::2] = 0
    weights["first"] = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("Sub", [tokens, "first"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["words"], axis=0),
        helper.make_node("ReduceMean", ["words"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Concat", ["mean", vector], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w", "b"], ["h0"], name="first"),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("Shape", [vector], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["h1", "sizes"], ["h2"], name="reshape"),
        helper.make_node("Gemm", ["h2", "v", "c"], ["y"], name="last"),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info(tokens, kind, [batch, 5]),
            helper.make_tensor_value_info(vector, TensorProto.FLOAT, [batch, 4]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("y", "z")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def inputs(count: int = WORDS) -> dict[str, Array]:
    return {VECTOR: random(count, 4), TOKENS: np.random.default_rng(1).integers(0, 9, (count, 5))}


def run(path: Path, given: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kinds = {value.name: np.int32 if "int32" in value.type else None for value in session.get_inputs()}
    feeds = {name: array.astype(kinds[name] or array.dtype) for name, array in given.items()}
    return [np.asarray(value) for value in session.run(None, feeds)]


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("batch", ["n", 1])
def test_the_command_line(kind: int, batch: int | str, tmp_path: Path) -> None:
    before, calib, after = (tmp_path / name for name in ("a.onnx", "x.npz", "b.onnx"))
    onnx.save(network(kind, batch), before)
    np.savez(calib, **inputs())  # type: ignore[arg-type]
    assert main([str(before), "--ratio", "1.5", "--calib", str(calib), "-o", str(after), "-q"]) == 0
    onnx.checker.check_model(str(after), full_check=True)
    assert after.stat().st_size < before.stat().st_size
    assert [value.name for value in onnx.load(str(after)).graph.input] == [TOKENS, VECTOR]
    given = inputs(1 if batch == 1 else 7)
    for small, large in zip(run(after, given), run(before, given), strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tokens", "vector"), [("input_1", "input"), ("input", "input_1"), ("len", "self")])
def test_names_that_python_has_of_its_own(tokens: str, vector: str, tmp_path: Path) -> None:
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(network(tokens=tokens, vector=vector), before)
    given = {name: inputs()[old] for name, old in ((tokens, TOKENS), (vector, VECTOR))}
    small, *_ = subprune_fx.prune(load_model(before).module, given, ratio=1.5)
    subprune_fx.save(small, after, inputs=given)
    for found, wanted in zip(run(after, given), run(before, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_library_takes_them_by_the_files_names(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    module = load_model(tmp_path / "a.onnx").module
    labels = torch.zeros(WORDS, dtype=torch.int64)
    small, _, report = subprune_fx.prune(module, inputs(), ratio=1.5, evaluation=(inputs(), labels), reweight=False)
    assert report.ratio >= 1.5
    assert report.accuracy_before == report.accuracy_after
    given = inputs(6)
    with torch.no_grad():
        found = small(torch.from_numpy(given[TOKENS]), torch.from_numpy(given[VECTOR]))
    example = subprune_fx.bundle.Bundle(tuple(torch.from_numpy(given[name]) for name in (TOKENS, VECTOR)))
    onnx.save(write_back(small, example), tmp_path / "b.onnx")
    for left, right in zip(found, run(tmp_path / "b.onnx", given), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def bytes_network(kind: int = TensorProto.UINT8) -> onnx.ModelProto:
    """An image in bytes, normalised by the network; 16 channels, half of which nobody reads."""
    weights: dict[str, Array] = {"scale": np.asarray(1 / 255, np.float32), "w": random(16, 3, 3, 3), "v": random(16, 3)}
    weights["v"][::2] = 0
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("GlobalAveragePool", ["h1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["h2"]),
        helper.make_node("MatMul", ["h2", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16"])
def test_images_in_bytes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, calib, after = (tmp_path / name for name in ("a.onnx", "x.npz", "b.onnx"))
    made = bytes_network(helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    onnx.save(made, before)
    images = np.random.default_rng(2).integers(0, 256, (200, 3, 8, 8)).astype(kind)
    words = [str(before), "--ratio", "1.9", "--calib", str(calib), "-o", str(after), "-q"]
    np.savez(calib, x=images.astype(np.float32))
    assert main(words) == 2
    assert f'x: is float32, not {kind}; convert it with x.astype("{kind}")' in capsys.readouterr().err
    np.savez(calib, x=images)
    assert main(words) == 0
    found = onnx.load(str(after))
    assert found.graph.input[0] == made.graph.input[0]
    (small,), (large,) = run(after, {"x": images[:5]}), run(before, {"x": images[:5]})
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [{VECTOR: random(8, 4)}, {VECTOR: random(8, 4), "other": random(8, 4)}])
def test_other_inputs_are_refused(given: dict[str, Array], tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    with pytest.raises(SubpruneError, match=r"takes 2 inputs \(in.tokens:0, vector\), given are vector"):
        subprune_fx.prune(load_model(tmp_path / "a.onnx").module, given, ratio=2)
