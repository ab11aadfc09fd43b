"""What an ONNX file must be before it is read as a graph: versions, domains, types of what goes in and comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
import torch

from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.onnx_inner import graphs

OLDEST = 9
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains whose operators onnxruntime has."""
_NONE = ("a domain that onnxruntime lacks", "export it without custom operators")
_LAID_OUT = {"com.microsoft.nchwc": ("laid out for one processor", "optimise it up to ORT_ENABLE_EXTENDED, not more")}
"""What other domains are, and what to do."""
_OPSETS = {"": (OLDEST, onnx.defs.onnx_opset_version()), "ai.onnx.ml": (1, 5), "com.microsoft": (1, 1)}
"""Which versions of them: the oldest and the newest."""
DTYPES: dict[int, torch.dtype] = {
    # The passes compute in float32.
    **dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE), torch.float32),
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
}
_UNREADABLE = (onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def check_versions(model: onnx.ModelProto, path: str) -> None:
    """That onnxruntime has all versions and domains.

    Raises:
        SubpruneError: One is not supported; it is named.
    """
    if model.ir_version > onnx.IR_VERSION:
        what = f"is of IR version {model.ir_version}, supported are those up to {onnx.IR_VERSION}"
        raise SubpruneError(what, where=path, remedy="save it with an older onnx")
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        oldest, newest = _OPSETS.get(domain, (entry.version, entry.version))
        if not oldest <= entry.version <= newest:
            whose = f" of {domain}" if domain else ""
            what = f"uses opset {entry.version}{whose}, supported are {oldest} to {newest}"
            raise SubpruneError(what, where=path, remedy="convert it with onnx.version_converter")
    local = {function.domain for function in model.functions}
    for node in (node for graph in graphs(model.graph) for node in graph.node):
        if node.domain not in DOMAINS and node.domain not in local:
            kind, remedy = _LAID_OUT.get(node.domain, _NONE)
            what = f"node {node.name or node.op_type} is {node.domain}.{node.op_type}, {kind}"
            raise SubpruneError(what, where=path, remedy=remedy)


def check_values(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], path: str) -> None:
    """That weights have names of their own, and that what goes in and comes out are tensors of numbers.

    Raises:
        SubpruneError: Two weights share one, or a value is none.
    """
    twice = next((name for name, n in Counter(t.name for t in model.graph.initializer).items() if n > 1), None)
    if twice is not None:  # onnxruntime takes either, with a warning
        raise SubpruneError(f"weight {twice} is there twice", where=path, remedy="export it again")
    known = {kind: name for name, kind in onnx.TensorProto.DataType.items() if kind}
    for what, values in (("input", inputs), ("output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            held = value.type.tensor_type.elem_type
            if kind not in (None, "tensor_type"):
                found = f"{what} {value.name} is no tensor but of type {kind.removesuffix('_type')}"
                raise SubpruneError(found, where=path, remedy="export it without what makes it (a ZipMap, say)")
            if held in _UNREADABLE or (what == "input" and held not in DTYPES):
                found = f"{what} {value.name} holds {known.get(held, 'UNDEFINED')}, which is not supported"
                raise SubpruneError(found, where=path, remedy="export it with another type there")


def check_samples(inputs: Sequence[onnx.ValueInfoProto], path: str) -> None:
    """That no input has on another dimension what is first of others: calibration inputs are cut into samples there.

    Raises:
        SubpruneError: One has (the state of a recurrent layer, say).
    """
    shapes = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in inputs}
    samples = {dims[0]: name for name, dims in shapes.items() if dims and dims[0]}
    for name, dims in shapes.items():
        place = next((d for d, symbol in enumerate(dims) if symbol in samples), 0)
        if place:
            what = f"input {name} has samples ({dims[place]}) on dimension {place}, {samples[dims[place]]} on the first"
            raise SubpruneError(what, where=path, remedy="export it with samples first everywhere, or with fixed sizes")
