"""An ONNX file as a network, or one line on why it is none. Nothing in such a file can run code."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from torch import fx

from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.formats.onnx_checks import DTYPES, check_samples, check_values, check_versions
from subprune_fx.frontends.onnx_calls import whole_reason
from subprune_fx.frontends.onnx_computed import compute_weights
from subprune_fx.frontends.onnx_graph import import_graph
from subprune_fx.frontends.onnx_inner import tensors
from subprune_fx.frontends.onnx_plain import FLOAT_KINDS, plain
from subprune_fx.frontends.onnx_source import META, source_of
from subprune_fx.sessions import opened, quiet
from subprune_fx.sizes import PROTOBUF_LIMIT

_EXPORT = "export it again"


@dataclasses.dataclass(frozen=True)
class OnnxNetwork:
    """A network that came out of an ONNX file.

    Attributes:
        module: Its graph.
        takes: Its inputs.
    """

    module: fx.GraphModule
    takes: tuple[InputSpec, ...]


def load_onnx(data: bytes, path: str) -> OnnxNetwork:
    """Read an ONNX model.

    Args:
        data: The file's content.
        path: Where it was, for errors and external data.

    Raises:
        SubpruneError: It is damaged, too large or no valid ONNX, its opset or a domain is not supported, external data
            is missing, it takes no input, or it has no float weights.
    """
    _check_size(len(data), path)
    model = _parse(data, path)
    check_versions(model, path)
    _check_size(len(data) + _outside(model), path)
    _load_external(model, path)
    size = model.ByteSize()
    try:
        model = plain(model)
    except Exception as error:
        what = f"its functions or sparse tensors cannot be spelled out ({first_line(error)})"
        raise SubpruneError(what, where=path, remedy=_EXPORT) from error
    check_versions(model, path)
    _check_runs(model, path)
    inputs = _inputs(model)
    check_values(model, inputs, path)
    if not inputs:
        raise SubpruneError("takes no input: it computes a constant", where=path, remedy=_EXPORT)
    check_samples(inputs, path)
    if not any(_is_weight(tensor) for tensor in tensors(model.graph)):
        why = whole_reason(node.op_type for node in model.graph.node) or "there is nothing to prune"
        raise SubpruneError(f"has no float weights: {why}", where=path, remedy=_EXPORT)
    try:
        compute_weights(model)
        module = import_graph(model)
    except SubpruneError:
        raise
    except Exception as error:
        what = f"cannot be read as a graph ({type(error).__name__}: {first_line(error)})"
        raise SubpruneError(what, where=path, remedy=_EXPORT) from error
    source = source_of(module)
    assert source is not None
    module.meta[META] = dataclasses.replace(source, size=size)
    holders = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    return OnnxNetwork(module, tuple(_taken(value, holder) for value, holder in zip(inputs, holders, strict=True)))


def _check_size(size: int, path: str) -> None:
    if size > PROTOBUF_LIMIT:
        what = f"holds {size / 2**30:.1f} GB, at most 2 can be read of an ONNX model"
        raise SubpruneError(what, where=path, remedy="give the network as a .pt2")


def _outside(model: onnx.ModelProto) -> int:
    """Bytes of the weights that are in other files."""
    return sum(_bytes(tensor) for tensor in tensors(model.graph) if uses_external_data(tensor))


def _bytes(tensor: onnx.TensorProto) -> int:
    try:
        return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:  # no type at all: onnxruntime says so
        return 0


def _parse(data: bytes, path: str) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto()
        model.ParseFromString(data)
    except Exception as error:
        raise SubpruneError(
            "is not an ONNX model, or a damaged one", where=path, remedy="copy or save it again"
        ) from error
    for there, what in (
        (model.opset_import, "says no opset, as every ONNX model does"),
        (model.graph.node, "holds a graph without nodes"),
        (model.graph.output, "has no outputs"),
    ):
        if not there:
            raise SubpruneError(what, where=path, remedy="copy or save it again")
    return model


def _load_external(model: onnx.ModelProto, path: str) -> None:
    """Weights from other files; the helper refuses paths that leave the model's folder."""
    if not any(uses_external_data(tensor) for tensor in tensors(model.graph)):
        return
    try:
        load_external_data_for_model(model, str(Path(path).parent))
    except Exception as error:
        what = f"its external data cannot be read ({first_line(error)})"
        raise SubpruneError(what, where=path, remedy="keep the data file beside it") from error


def _check_runs(model: onnx.ModelProto, path: str) -> None:
    """Onnxruntime's own word on whether it is a model."""
    options = quiet(optimised=False)
    with tempfile.TemporaryDirectory(prefix="subprune-") as folder:
        file = Path(folder) / "model.onnx"
        try:
            onnx.save(model, file)
            opened(file, options)
        except Exception as error:
            what = f"is not a model that onnxruntime runs ({first_line(error).replace(str(file), path)})"
            raise SubpruneError(what, where=path, remedy=_EXPORT) from error


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _taken(value: onnx.ValueInfoProto, argument: str) -> InputSpec:
    """The batch axis is left open: a graph that states one may run with any."""
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if not tensor.HasField("shape") or not sizes:
        return InputSpec(value.name, dtype=dtype, argument=argument)
    known = [size for size in sizes[1:] if size is not None]
    sample = (1, *known) if len(known) == len(sizes) - 1 else None
    return InputSpec(value.name, True, (None, *sizes[1:]), sample, dtype, argument)


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in FLOAT_KINDS and int(np.prod(tensor.dims)) > 1
