"""Carry a pruned graph back into the ONNX model it came from: the user's own file, with smaller tensors in it.

Only what changed is touched: weights, attributes, sizes. Names, order, metadata, opset, domains and the signature stay,
which is why the model is edited in place of being exported again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, fx, nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.onnx_constants import as_imported
from subprune_fx.frontends.onnx_inner import graphs, tensors
from subprune_fx.frontends.onnx_op import VARIADIC, OnnxOp, as_array
from subprune_fx.frontends.onnx_plain import sweep
from subprune_fx.frontends.onnx_source import Source, source_of
from subprune_fx.frontends.onnx_static import file_batch, record, stated_batch
from subprune_fx.passes.export import check_onnx
from subprune_fx.passes.onnx_sizes import Constants, Sizes, override
from subprune_fx.passes.validate import validate_onnx
from subprune_fx.sizes import PROTOBUF_LIMIT

Array = NDArray[Any]
_HALVES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
HALF = 2e-2
"""Tolerance for files in half precision, whose numbers are off by 5e-4 each, in bfloat16 by 4e-3: the graph that they
are compared with is in single."""


def write_back(module: fx.GraphModule, example: Inputs) -> onnx.ModelProto:
    """The ONNX model of a pruned network.

    Args:
        module: A graph that came from an ONNX model, pruned or not.
        example: Input that it accepts.

    Returns:
        A new model; that of the original network is unchanged.
    """
    source = source_of(module)
    assert source is not None
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    constants = Constants(model)
    # A placeholder that was packed and unpacked again is not called after its target any more.
    values = {str(n.target) if n.op == "placeholder" else n.name: v for n, v in record(module, example).items()}
    sizes = Sizes(model, source, values, constants)
    _weights(module, source, constants, sizes)
    _attributes(module, source, model)
    nodes = {node.name: node for node in module.graph.nodes}
    for name, position in source.nodes.items():
        if name in source.lists:
            _list(nodes[name], model.graph.node[position], source, sizes)
        elif name in nodes:
            _operands(nodes[name], model.graph.node[position], module, source, sizes)
    for (name, operand), tensor in source.narrow.items():
        model.graph.node[source.nodes[name]].input[source.place(name, operand)] = tensor
    sizes.insert()
    sweep(model)
    _forget_shapes(model, source, values)
    return model


def _weights(module: fx.GraphModule, source: Source, constants: Constants, sizes: Sizes) -> None:
    """Parameters that differ from the file's are written in the file's own precision.

    Where readers of one constant now need different values, the first keeps its name and the others get their own;
    first are those that know it by its name.
    """
    written: dict[str, Array | None] = {}
    for node in sorted(module.graph.nodes, key=lambda node: not any(map(_names_it, node.users))):
        name = source.tensors.get(str(node.target)) if node.op == "get_attr" else None
        if name is None:
            continue
        old = constants.original(name)
        array = getattr(module, str(node.target)).detach().numpy()
        new = np.ascontiguousarray(array.reshape((1,) * (old.ndim - array.ndim) + array.shape))
        value = None if _same(as_imported(old), new) else new.astype(old.dtype)
        if name not in written:
            written[name] = value
            if value is not None:
                constants.write(name, value)
        elif not _equal(written[name], value):
            _rewire(node, sizes, source, sizes.constant(old if value is None else value, name))


def _names_it(user: fx.Node) -> bool:
    """Whether what a node reads is called by its name elsewhere than among a node's operands: in a graph inside."""
    return user.op == "output" or (isinstance(user.target, OnnxOp) and bool(user.target.captured))


def _same(left: Array, right: Array) -> bool:
    return left.size == right.size and np.array_equal(left.reshape(-1), right.reshape(-1), equal_nan=True)


def _equal(left: Array | None, right: Array | None) -> bool:
    return left is right if left is None or right is None else left.shape == right.shape and _same(left, right)


def _rewire(node: fx.Node, sizes: Sizes, source: Source, name: str) -> None:
    """Let the ONNX nodes that read an fx constant read another one."""
    for user in node.users:
        proto = sizes.model.graph.node[source.nodes[user.name]]
        args = user.args[0] if proto.op_type in VARIADIC else user.args
        assert isinstance(args, (list, tuple))
        for position, arg in enumerate(args):
            if arg is node:
                proto.input[source.place(user.name, position)] = name


def _attributes(module: fx.GraphModule, source: Source, model: onnx.ModelProto) -> None:
    for node in module.graph.nodes:
        before = source.attributes.get(node.name, {})
        if node.name not in source.nodes:
            continue
        proto = model.graph.node[source.nodes[node.name]]
        for key, value in node.kwargs.items():
            if value != before.get(key):
                _drop_attribute(proto, key)
                proto.attribute.append(helper.make_attribute(key, value))


def _list(node: fx.Node, proto: onnx.NodeProto, source: Source, sizes: Sizes) -> None:
    """Where the file shuffles channels and the graph lists them, so does the file; what reshaped them goes unread."""
    read, order = node.args
    assert isinstance(read, fx.Node)
    proto.op_type = "Gather"
    proto.input[:] = [source.tensor(read.name), sizes.constant(as_array(order), proto.output[0])]
    del proto.attribute[:]
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in node.kwargs.items())


def _drop_attribute(proto: onnx.NodeProto, name: str) -> None:
    for position in reversed(range(len(proto.attribute))):
        if proto.attribute[position].name == name:
            del proto.attribute[position]


def _operands(node: fx.Node, proto: onnx.NodeProto, module: fx.GraphModule, source: Source, sizes: Sizes) -> None:
    """Where the file would compute other sizes than the pruned graph has, write the latter."""
    args = node.args[0] if proto.op_type in VARIADIC else node.args
    assert isinstance(args, (list, tuple))
    for operand, arg in enumerate(args):
        position, wanted = source.place(node.name, operand), sizes.wanted(arg, module)
        if position < 0 or wanted is None or not sizes.written(arg, wanted):
            continue
        found = sizes.computed(proto, position)
        if found is not None and np.array_equal(found, wanted):
            continue
        if proto.op_type == "Split":
            _drop_attribute(proto, "num_outputs")
        override(sizes, proto, position, wanted, found)


def _forget_shapes(model: onnx.ModelProto, source: Source, values: Mapping[str, Any]) -> None:
    """Drop shape annotations that are no longer true or that belong to no tensor."""
    graph, batch = model.graph, stated_batch(model)
    made = {name for node in graph.node for name in node.output}
    for k in reversed(range(len(graph.value_info))):
        value = graph.value_info[k]
        if value.name not in made or not _true(value, _shape(source, value.name, values), batch):
            del graph.value_info[k]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in graph.input:
        if value.name in shapes:
            kind = value.type.tensor_type.elem_type
            value.type.CopyFrom(helper.make_tensor_type_proto(kind, shapes[value.name]))


def _shape(source: Source, name: str, values: Mapping[str, Any]) -> tuple[int, ...] | None:
    found = source.values.get(name)
    value = values.get(found) if isinstance(found, str) else None if found is None else values.get(found[0])
    if isinstance(found, tuple) and value is not None:
        value = value[found[1]]
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _true(value: onnx.ValueInfoProto, shape: tuple[int, ...] | None, batch: int | None) -> bool:
    """Whether every number in an annotation fits; the first may be the batch that the file states."""
    dims = value.type.tensor_type.shape.dim
    if shape is None or len(dims) != len(shape):
        return False
    return all(
        not dim.HasField("dim_value") or dim.dim_value == size or (axis == 0 and dim.dim_value == batch)
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True))
    )


def save(module: nn.Module, example: Inputs, path: Path) -> None:
    """Write a network that came from an ONNX file; the original as it was, a pruned one rewritten.

    Args:
        module: The network.
        example: Input that it accepts.
        path: Where to write.

    Raises:
        SubpruneError: The result is not valid ONNX, or larger than the 2 GB of such a file.
    """
    assert isinstance(module, fx.GraphModule)
    source = source_of(module)
    assert source is not None
    model = write_back(module, example) if source.attributes else source.model
    if model.ByteSize() > PROTOBUF_LIMIT:
        what = f"the network holds {model.ByteSize() / 2**30:.1f} GB, an ONNX file at most 2"
        raise SubpruneError(what, where=str(path), remedy="ask for a higher ratio")
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        check_onnx(path)
    except SubpruneError:
        if _is_valid(source.model):
            raise


def _is_valid(model: onnx.ModelProto) -> bool:
    """Whether the checker has nothing against a file; onnxruntime runs some that it does."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # noqa: BLE001 - the checker's and shape inference's errors share no base
        return False
    return True


def check(module: nn.Module, path: Path, calibration: Inputs) -> float:
    """Compare a written file with the graph it was made of; the largest absolute difference.

    Raises:
        SubpruneError: It is larger than the original.
        ValidationError: They differ beyond rounding.
    """
    source = source_of(module)
    assert source is not None
    size = path.stat().st_size
    if source.attributes and 0 < source.size < size:
        what = f"would take {size:,} bytes, more than the {source.size:,} of the original"
        raise SubpruneError(what, where=str(path), remedy="ask for a higher ratio")
    tolerance = HALF if _is_half(source.model) else None
    return validate_onnx(path, module, calibration, tolerance=tolerance, fixed_batch=file_batch(module))


def _is_half(model: onnx.ModelProto) -> bool:
    """Whether a file computes anything in half precision: it holds such numbers, or converts to them."""
    casts = (node for graph in graphs(model.graph) for node in graph.node if node.op_type == "Cast")
    kinds = {attribute.i for node in casts for attribute in node.attribute if attribute.name == "to"}
    return not _HALVES.isdisjoint(kinds | {tensor.data_type for tensor in tensors(model.graph)})
