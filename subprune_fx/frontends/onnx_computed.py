"""Weights that an ONNX graph computes from constants alone (reshaped, scaled, normalised), turned into constants.

As `fx_computed` does it for torch. What is dequantised stays computed: as floats it would take four times the room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from subprune_fx.frontends.onnx_calls import WEIGHTS
from subprune_fx.frontends.onnx_inner import inner
from subprune_fx.frontends.onnx_plain import FLOATS, reads, sweep
from subprune_fx.frontends.onnx_static import STAYS
from subprune_fx.sessions import opened, quiet

Array = NDArray[Any]
_FOLLOWED = frozenset({"Identity", "Cast", "Transpose"})
"""Behind these the analysis finds the constant itself."""
_INITIALIZERS_ARE_INPUTS = 4
"""Below this IR version every initializer must also be a graph input."""


def compute_weights(model: onnx.ModelProto) -> None:
    """Replace weights that are computed from constants alone by constants, in `model` itself.

    One stays computed where something else reads what it is computed from, which then would have to be kept too, or
    where it is larger than that (a vector that is expanded).

    Args:
        model: Its nodes behind those that they read, its external data loaded.
    """
    graph = _Graph(model.graph)
    wanted = _unshared(graph, set(graph.weights()))
    if not wanted:
        return
    try:
        values = _values(model, graph, sorted(wanted))
    except Exception:  # noqa: BLE001 - too large for a file, or a part that fails alone: they stay computed
        return
    kept = _unshared(graph, {name for name, value in values.items() if graph.is_no_larger(name, value)})
    gone = {id(node) for name in kept for node in graph.cone(name)}
    for k in reversed(range(len(model.graph.node))):
        if id(graph.nodes[k]) in gone:
            del model.graph.node[k]
    for name in sorted(kept):
        model.graph.initializer.append(numpy_helper.from_array(values[name], name))
        if model.ir_version < _INITIALIZERS_ARE_INPUTS:
            kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, values[name].shape))
    if kept:
        sweep(model)


class _Graph:
    """Who makes and who reads a graph's tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.bytes = {name: _bytes(tensor) for name, tensor in self.initializers.items()}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.fixed = set(self.initializers)
        for node in self.nodes:
            self.makers.update((name, node) for name in node.output if name)
            given = [name for name in reads(node) if name]
            for name in given:
                self.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                held = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
                self.bytes[node.output[0]] = sum(map(_bytes, held))
            if node.op_type == "Constant" or (given and self.fixed.issuperset(given) and _repeats(node)):
                self.fixed.update(node.output)

    def weights(self) -> Iterator[str]:
        """What layers read as parameters and the graph computes from constants."""
        for node in self.nodes:
            for place in WEIGHTS.get(node.op_type, ()) if not node.domain else ():
                name = node.input[place] if place < len(node.input) else ""
                if name in self.fixed and name not in self.outputs and not self._is_plain(name):
                    yield name

    def _is_plain(self, name: str) -> bool:
        while name not in self.bytes and self.makers[name].op_type in _FOLLOWED:
            name = self.makers[name].input[0]
        return name in self.bytes

    def above(self, name: str) -> set[str]:
        """A tensor and all that it is computed from."""
        found, pending = {name}, [name]
        while pending:
            maker = self.makers.get(pending.pop())
            new = {used for used in (maker.input if maker else ()) if used and used not in found}
            found |= new
            pending += new
        return found

    def cone(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that compute a tensor, without those that are constants."""
        makers = {id(node): node for one in self.above(name) - self.bytes.keys() if (node := self.makers.get(one))}
        return list(makers.values())

    def is_no_larger(self, name: str, value: Array) -> bool:
        """Whether a weight takes no more room than what it is computed from."""
        return (
            value.dtype in FLOATS
            and value.size > 1
            and value.nbytes <= sum(self.bytes.get(one, 0) for one in self.above(name))
        )


def _unshared(graph: _Graph, wanted: set[str]) -> set[str]:
    """Those weights for which nothing is computed, and no large constant held, that something else reads."""
    while True:
        inside = {id(node) for name in wanted for node in graph.cone(name)}
        shared = {name for name in wanted if _is_shared(graph, name, wanted, inside)}
        if not shared:
            return wanted
        wanted = wanted - shared


def _is_shared(graph: _Graph, name: str, wanted: Collection[str], inside: Collection[int]) -> bool:
    made = {output for node in graph.cone(name) for output in node.output if output}
    held = {one for one in graph.above(name) if graph.bytes.get(one)}
    private = (made - set(wanted)) | held
    return any(id(node) not in inside for one in private for node in graph.readers.get(one, ())) or bool(
        private & graph.outputs
    )


def _values(model: onnx.ModelProto, graph: _Graph, names: list[str]) -> dict[str, Array]:
    """What onnxruntime computes for some tensors."""
    above = set().union(*map(graph.above, names))
    part = onnx.ModelProto(ir_version=max(model.ir_version, _INITIALIZERS_ARE_INPUTS), opset_import=model.opset_import)
    part.graph.name = "weights"
    part.graph.node.extend(node for node in graph.nodes if not above.isdisjoint(node.output))
    part.graph.initializer.extend(graph.initializers[one] for one in above & graph.initializers.keys())
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = opened(part.SerializeToString(), quiet(optimised=False))
    return {name: np.asarray(value) for name, value in zip(names, session.run(None, {}), strict=True)}


def _repeats(node: onnx.NodeProto) -> bool:
    """Whether a node gives the same at each call, and may be computed ahead."""
    return node.op_type not in STAYS and not any(graph for held in node.attribute for graph in inner(held))


def _bytes(tensor: onnx.TensorProto) -> int:
    """Of numbers that may be a parameter; 0 for others and single ones."""
    count, kind = int(np.prod(tensor.dims)), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return count * kind.itemsize if kind in FLOATS and count > 1 else 0
