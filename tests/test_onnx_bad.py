"""What is no usable ONNX model, or no input of it: one line on stderr that says why, exit code 2, nothing written."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_onnx_graphs import BATCH, mlp, model, random

from subprune_fx.cli.main import main
from subprune_fx.formats import onnx_file

Edit = Callable[[onnx.ModelProto], object]


def foreign(domain: str, op: str) -> Edit:
    """One of the nodes is of another domain."""

    def edit(made: onnx.ModelProto) -> None:
        made.graph.node[2].domain, made.graph.node[2].op_type = domain, op
        made.opset_import.append(helper.make_opsetid(domain, 1))

    return edit


def function(inner: str, domain: str, opset: int = 13) -> Edit:
    """The activation is a function of the file's own, which calls `inner` of a domain."""

    def edit(made: onnx.ModelProto) -> None:
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1), helper.make_opsetid("my.company", 1)]
        body = [helper.make_node(inner, ["p"], ["q"], domain=domain)]
        made.functions.append(helper.make_function("own", "Act", ["p"], ["q"], body, imports))
        made.graph.node[2].domain, made.graph.node[2].op_type = "own", "Act"
        made.opset_import.append(helper.make_opsetid("own", 1))

    return edit


def outside(**entries: str) -> Edit:
    """The first weight in another file, `entries` saying where; `here.bin` is beside the model and fits."""

    def edit(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        Path("here.bin").write_bytes(tensor.raw_data)
        Path("short.bin").write_bytes(tensor.raw_data[:8])
        Path("link.bin").symlink_to("here.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def sparse(*places: int) -> Edit:
    """The first weight as a sparse tensor with ones at some places."""

    def edit(made: onnx.ModelProto) -> None:
        ones = numpy_helper.from_array(np.ones(len(places), np.float32), "w")
        tensor = helper.make_sparse_tensor(ones, numpy_helper.from_array(np.asarray(places), "w_places"), [6, 16])
        made.graph.sparse_initializer.append(tensor)
        del made.graph.initializer[0]

    return edit


def two_inputs(made: onnx.ModelProto) -> None:
    del made.graph.initializer[1]
    made.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [16]))


def state(made: onnx.ModelProto) -> None:
    """A second input, of which samples are the second dimension."""
    made.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, BATCH, 6]))
    made.graph.node[0].input[0] = "sum"
    made.graph.node.insert(0, helper.make_node("Add", ["x", "s"], ["sums"]))
    made.graph.node.insert(1, helper.make_node("Reshape", ["sums", "sizes"], ["sum"]))
    made.graph.initializer.append(numpy_helper.from_array(np.asarray([-1, 6]), "sizes"))


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model.onnx", data)
    return buffer.getvalue()


def weightless() -> bytes:
    return bytes(model([helper.make_node("Relu", ["x"], ["y"])], {}, [BATCH, 6], out=[BATCH, 6]).SerializeToString())


def zip_map(made: onnx.ModelProto) -> None:
    """The scores as a map from class to score, as scikit-learn's converter writes them."""
    made.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    scores = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    made.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(scores)))


def set_opset(version: int) -> Edit:
    return lambda made: setattr(made.opset_import[0], "version", version)


def newer_domain(made: onnx.ModelProto) -> None:
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 99))


def sequence(made: onnx.ModelProto) -> None:
    """The input is the first of a sequence."""
    made.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(made.graph.input[0].type))
    made.graph.input[0].name = "s"
    made.graph.node.insert(0, helper.make_node("Constant", [], ["i"], value_int=0))
    made.graph.node.insert(1, helper.make_node("SequenceAt", ["s", "i"], ["x"]))


def set_type(what: str, kind: int) -> Edit:
    """What goes in or comes out is of another type."""

    def edit(made: onnx.ModelProto) -> None:
        (value,) = getattr(made.graph, what)
        value.type.tensor_type.elem_type = kind
        if what == "input":
            made.graph.node[0].input[0] = "f"
            made.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT))
        else:
            made.graph.node[-1].output[0] = "f"
            made.graph.node.append(helper.make_node("Cast", ["f"], ["y"], to=kind))

    return edit


EDITS: dict[str, tuple[Edit, str]] = {
    "opset 8": (set_opset(8), "uses opset 8, supported are 9 to"),
    "a newer opset": (set_opset(999), "uses opset 999, supported are 9 to"),
    "a newer opset of a domain": (newer_domain, "uses opset 99 of ai.onnx.ml, supported are 1 to"),
    "a newer format": (lambda made: setattr(made, "ir_version", 99), "is of IR version 99, supported are those up to"),
    "no opset": (lambda made: made.ClearField("opset_import"), "says no opset"),
    "layout": (foreign("com.microsoft.nchwc", "Conv"), "laid out for one processor; optimise it up to ORT_ENABLE_EXT"),
    "domain": (foreign("my.company", "Wow"), "my.company.Wow, a domain that onnxruntime lacks"),
    "domain in a function": (function("Wow", "my.company"), "my.company.Wow, a domain that onnxruntime lacks"),
    "recursion": (function("Act", "own"), "cannot be spelled out .*[Cc]ycle"),
    "a function's opset": (function("Relu", "", 12), "function own.Act is written for another opset than the file"),
    "operator": (lambda made: setattr(made.graph.node[2], "op_type", "Wow"), "onnxruntime runs .*Wow"),
    "no file": (outside(location="gone.bin"), "external data cannot be read.*keep the data file beside it"),
    "a file elsewhere": (outside(location="../here.bin"), "external data cannot be read"),
    "a file anywhere": (outside(location="/etc/hostname"), "external data cannot be read"),
    "a link": (outside(location="link.bin"), "external data cannot be read"),
    "a short file": (outside(location="short.bin"), "raw_data size"),
    "past its end": (outside(location="here.bin", offset="9999", length="384"), "external data cannot be read"),
    "before its start": (outside(location="here.bin", offset="-4", length="384"), "external data cannot be read"),
    "two inputs": (two_inputs, r"takes 2 inputs, and there is no array 'b'"),
    "samples elsewhere": (state, r"input s has samples \(.*\) on dimension 1, x on the first; export it with samples"),
    "no nodes": (lambda made: made.graph.ClearField("node"), "holds a graph without nodes"),
    "no outputs": (lambda made: made.graph.ClearField("output"), "has no outputs"),
    "a node twice": (lambda made: made.graph.node.append(made.graph.node[2]), "is not a model that onnxruntime runs"),
    "a weight twice": (
        lambda made: made.graph.initializer.append(made.graph.initializer[0]),
        "weight w is there twice",
    ),
    "a loop": (lambda made: made.graph.node[0].input.__setitem__(0, "h1"), "is not a model that onnxruntime runs"),
    "no tensor": (zip_map, "output z is no tensor but of type sequence"),
    "a sequence": (sequence, "input s is no tensor but of type sequence"),
    "words": (set_type("output", TensorProto.STRING), "output y holds STRING, which is not supported"),
    "other numbers": (set_type("input", TensorProto.UINT32), "input x holds UINT32, which is not supported"),
    "no numbers": (
        lambda made: setattr(made.graph.node[2], "op_type", "Log"),
        "its outputs are NaN; check its weights",
    ),
    "positions outside": (sparse(1, 999), "cannot be spelled out .*out of bounds"),
    "larger": (sparse(1), "would take .* bytes, more than the .* of the original; ask for a higher ratio"),
}
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[:300], "is not an ONNX model, or a damaged one"),
    "more behind": (lambda data: data + b"\0more", "is not an ONNX model, or a damaged one"),
    "text": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "is not an ONNX model, or a damaged one"),
    "a zip": (zipped, "is not an ONNX model, or a damaged one"),
    "nothing": (lambda _: b"", "is empty"),
    "no weights": (lambda _: weightless(), "has no float weights"),
}
INPUTS: dict[str, tuple[NDArray[Any], str]] = {
    "other sizes": (random(20, 7), r"has shape \(20, 7\), the network takes \(n, 6\)"),
    "other dimensions": (random(20, 6, 1), r"has shape \(20, 6, 1\), the network takes \(n, 6\)"),
    "integers": (np.ones((20, 6), np.int64), 'is int64, the network takes float32; convert it with x.astype."float32"'),
    "NaN": (random(20, 6) * np.nan, "NaN or infinite values"),
}
WORDS = {
    "pt2": (["-o", "b.pt2"], "came from an ONNX file cannot be written as .pt2"),
    "arch": (["--arch", "a.py:A"], "--arch does not apply"),
}


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[bytes, str], None]:
    """Run the command on a file's content; what it says must match."""
    monkeypatch.chdir(tmp_path)

    def refused_(data: bytes, message: str, *words: str) -> None:
        Path("a.onnx").write_bytes(data)
        if not Path("x.npz").exists():
            np.savez("x.npz", x=random(20, 6))
        before = sorted(path.name for path in tmp_path.iterdir())
        assert main(["a.onnx", "--ratio", "1.2", "--calib", "x.npz", "-o", "b.onnx", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert re.search(message, said), said
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    return refused_


@pytest.mark.parametrize("name", EDITS)
def test_a_model_that_is_none(name: str, refused: Callable[..., None]) -> None:
    edit, message = EDITS[name]
    made = mlp()
    edit(made)
    refused(made.SerializeToString(), message)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_model(name: str, refused: Callable[..., None]) -> None:
    change, message = BYTES[name]
    refused(change(mlp().SerializeToString()), message)


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_another_network(name: str, refused: Callable[..., None]) -> None:
    inputs, message = INPUTS[name]
    np.savez("x.npz", x=inputs)
    refused(mlp().SerializeToString(), message)


@pytest.mark.parametrize("name", WORDS)
def test_options_that_do_not_apply(name: str, refused: Callable[..., None]) -> None:
    words, message = WORDS[name]
    refused(mlp().SerializeToString(), message, *words)


@pytest.mark.parametrize("outside", [False, True])
def test_a_model_larger_than_can_be_read(
    outside: bool, refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one file, or with weights that are kept in another."""
    made = mlp()
    size = made.ByteSize()
    if outside:
        onnx.save(made, tmp_path / "c.onnx", save_as_external_data=True, size_threshold=0, location="c.data")
        made = onnx.load(tmp_path / "c.onnx", load_external_data=False)
        assert made.ByteSize() < size - 100
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", size - 100)
    refused(made.SerializeToString(), r"holds 0.0 GB, at most 2 can be read .*; give the network as a .pt2")
