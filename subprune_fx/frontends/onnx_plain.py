"""Spellings of ONNX that the importer does not read: functions are inlined, sparse tensors made dense, nodes sorted."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from subprune_fx.frontends.onnx_inner import graphs, inner

FLOAT_KINDS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
"""Types of what may be a weight."""
FLOATS = tuple(map(helper.tensor_dtype_to_np_dtype, FLOAT_KINDS))
"""The same in numpy."""


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without functions and sparse tensors, its nodes behind those that they read.

    Args:
        model: With its external data loaded; changed in place.

    Raises:
        Exception: A function calls itself or has an opset of its own, or positions of a sparse tensor lie outside of
            it; onnx's and numpy's own.
    """
    if model.functions:
        model = inline_local_functions(model)
    for function in model.functions:  # what the inliner has left, and it fails to convert them
        message = f"function {function.domain}.{function.name} is written for another opset than the file"
        raise ValueError(message)
    for graph in graphs(model.graph):
        _sort(graph)
        for sparse in graph.sparse_initializer:
            graph.initializer.append(dense(sparse))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                    attribute.CopyFrom(helper.make_attribute("value", dense(attribute.sparse_tensor)))
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes behind those that they read, else as they are: onnxruntime takes any order, and converters leave some."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[name] for name in reads(node) if name in makers} for node in graph.node]
    if all(max(needed, default=-1) < k for k, needed in enumerate(needs)):
        return
    readers: dict[int, list[int]] = {}
    for k, needed in enumerate(needs):
        for other in needed:
            readers.setdefault(other, []).append(k)
    missing = list(map(len, needs))
    ready, order = [k for k, count in enumerate(missing) if not count], list[int]()
    while ready:
        order.append(heapq.heappop(ready))
        for k in readers.get(order[-1], ()):
            missing[k] -= 1
            if not missing[k]:
                heapq.heappush(ready, k)
    if len(order) == len(needs):  # else some read themselves, which the checker says
        nodes = [graph.node[k] for k in order]
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copied)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside of its graphs among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in inner(attribute):
            for step in graph.node:
                yield from reads(step)
            yield from (value.name for value in graph.output)


def sweep(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    graph = model.graph
    while True:
        used = {value.name for value in graph.output}
        for node in graph.node:
            used.update(reads(node))
        dead = [k for k, node in enumerate(graph.node) if not any(name in used for name in node.output)]
        for k in reversed(dead):
            del graph.node[k]
        if not dead:
            break
    orphans = {tensor.name for tensor in graph.initializer if tensor.name not in used}
    for entries in (graph.initializer, graph.input):
        for k in reversed(range(len(entries))):
            if entries[k].name in orphans:
                del entries[k]


def numbers(kind: str, value: Any) -> NDArray[Any]:
    """What a Constant node holds that has no tensor: its attribute `kind` (`value_floats`, say) with this value."""
    return np.asarray(value, dtype=np.float32 if kind.startswith("value_float") else np.int64)


def dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A sparse tensor as a tensor of its name; positions are flat, or a row of coordinates each."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    full = np.zeros(tuple(sparse.dims), values.dtype)
    full[np.unravel_index(places, full.shape) if places.ndim == 1 else tuple(places.T)] = values
    return numpy_helper.from_array(full, sparse.values.name)
