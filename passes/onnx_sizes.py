"""Sizes in an ONNX file: what its arithmetic would compute after pruning, and constants in place of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, fx

from subprune_fx.frontends.onnx_nodes import operator_of
from subprune_fx.frontends.onnx_op import VARIADIC, as_array
from subprune_fx.frontends.onnx_plain import numbers
from subprune_fx.frontends.onnx_source import Source, tensor_of
from subprune_fx.frontends.onnx_static import SIZES

Array = NDArray[Any]
_INITIALIZERS_ARE_INPUTS = 4
"""Below this IR version every initializer must also be a graph input: new constants are nodes there."""
_NOTES = ("doc_string", "metadata_props")
"""What may be said about a tensor beside what it holds."""


class Constants:
    """Initializers and Constant nodes of a model, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._protos: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._originals: dict[str, Array] = {}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._protos[node.output[0]] = node.attribute[0].t
            elif node.op_type == "Constant" and node.attribute:
                self._nodes[node.output[0]] = node

    def __contains__(self, name: str) -> bool:
        return name in self._protos or name in self._nodes

    def value(self, name: str) -> Array:
        """As it stands in the file."""
        node = self._nodes.get(name)
        return numpy_helper.to_array(self._protos[name]) if node is None else _numbers(node)

    def original(self, name: str) -> Array:
        """As it was before the first `write`."""
        return self._originals[name] if name in self._originals else self.value(name)

    def write(self, name: str, value: Array) -> None:
        """Replace the value; the name and whatever else is said about the tensor stay."""
        self._originals.setdefault(name, self.value(name))
        if name in self._nodes:
            attribute = self._nodes[name].attribute[0]
            attribute.CopyFrom(helper.make_attribute(attribute.name, value.tolist()))
            return
        proto = self._protos[name]
        notes = onnx.TensorProto(**{field.name: said for field, said in proto.ListFields() if field.name in _NOTES})
        proto.CopyFrom(numpy_helper.from_array(value, proto.name))
        proto.MergeFrom(notes)


def _numbers(node: onnx.NodeProto) -> Array:
    """Of a Constant node that holds no tensor."""
    (attribute,) = node.attribute
    return numbers(attribute.name, helper.get_attribute_value(attribute))


class Sizes:
    """Evaluates the size arithmetic of a rewritten model, and collects the nodes that correct it."""

    def __init__(self, model: onnx.ModelProto, source: Source, values: Mapping[str, Any], constants: Constants) -> None:
        """Set up.

        Args:
            model: The model, weights and attributes already rewritten.
            source: Where its pruned fx graph came from.
            values: By fx node name, its value in the pruned graph.
            constants: The model's.
        """
        self.model = model
        self._source = source
        self._values = values
        self._constants = constants
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._known: dict[str, Array | None] = {}
        self._names = {*self._makers, *(t.name for t in model.graph.initializer), *(v.name for v in model.graph.input)}
        self._added: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._first: list[onnx.NodeProto] = []
        self._before: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []

    def wanted(self, arg: Any, module: fx.GraphModule) -> Array | None:
        """The value of an operand that the pruned graph spells out; None for any other operand."""
        if isinstance(arg, fx.Node):
            spelled = arg.op == "get_attr" and str(arg.target) not in self._source.tensors
            return as_array(getattr(module, str(arg.target))) if spelled else None
        if arg is None:
            return None
        if isinstance(arg, (list, tuple)):
            return as_array([self._values[entry.name] if isinstance(entry, fx.Node) else entry for entry in arg])
        return as_array(arg)

    def written(self, arg: Any, value: Array) -> bool:
        """Whether an operand belongs into the file: a bias that the node never had does if it is not zero."""
        added = isinstance(arg, fx.Node) and str(arg.target) in self._source.biases
        return not added or bool(value.any())

    def computed(self, proto: onnx.NodeProto, position: int) -> Array | None:
        """What the file computes for an operand; None where it says nothing or fails."""
        if position < len(proto.input) and proto.input[position]:
            return self._evaluate(proto.input[position])
        if proto.op_type == "Split" and position == 1:
            return self._equal_parts(proto)
        return None

    def _equal_parts(self, proto: onnx.NodeProto) -> Array | None:
        tensor = tensor_of(self._source, proto.input[0], self._values)
        if not isinstance(tensor, Tensor):
            return None
        axis = next((a.i for a in proto.attribute if a.name == "axis"), 0)
        total, count = tensor.shape[axis], len(proto.output)
        part = -(-total // count)
        return np.asarray([max(0, min(part, total - part * k)) for k in range(count)], dtype=np.int64)

    def _evaluate(self, name: str) -> Array | None:
        if name in self._constants:
            return self._constants.value(name)
        if name not in self._known:
            self._known[name] = None
            maker = self._makers.get(name)
            if maker is not None:
                self._run(maker)
        return self._known[name]

    def _run(self, node: onnx.NodeProto) -> None:
        if node.op_type in SIZES:
            operands = [tensor_of(self._source, node.input[0], self._values)]
        else:
            arrays = [self._evaluate(name) if name else None for name in node.input]
            if any(array is None for array, name in zip(arrays, node.input, strict=True) if name):
                return
            operands = [None if array is None else torch.from_numpy(np.array(array)) for array in arrays]
        if operands and operands[0] is None:
            return
        try:
            op, attributes = operator_of(node, self.model.opset_import, tuple(bool(name) for name in node.output))
            value = op(operands, **attributes) if node.op_type in VARIADIC else op(*operands, **attributes)
        except Exception:  # noqa: BLE001 - arithmetic on sizes that no longer fit: its result is not wanted either
            return
        results = value if isinstance(value, tuple) else (value,)
        for name, result in zip(node.output, results, strict=False):
            if name:
                self._known[name] = result.numpy()

    def computes(self, name: str) -> bool:
        """Whether a tensor is the result of arithmetic, not a constant of the file."""
        return name not in self._constants

    def constant(self, value: Array, like: str) -> str:
        """The name of a new constant."""
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._added:
            name = self.fresh(f"{like or 'size'}_pruned")
            self._added[key] = name
            tensor = numpy_helper.from_array(value, name)
            if self.model.ir_version < _INITIALIZERS_ARE_INPUTS:
                self._first.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
            else:
                self.model.graph.initializer.append(tensor)
        return self._added[key]

    def fresh(self, name: str) -> str:
        """A name that no tensor has."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    def add(self, node: onnx.NodeProto, before: onnx.NodeProto) -> None:
        """Put a new node right before another one, once all are known."""
        self._before.append((node, before))

    def insert(self) -> None:
        """Insert what `constant` and `add` collected; until then positions of nodes are those of the original."""
        nodes = self.model.graph.node
        for node in self._first:
            nodes.insert(0, node)
        for new, anchor in self._before:
            position = next(k for k, node in enumerate(nodes) if node.output == anchor.output)
            nodes.insert(position, new)

    def concatenated(self, name: str) -> tuple[onnx.NodeProto, list[int]] | None:
        """The Concat that makes a size vector, and the lengths of its pieces, if it is made so."""
        maker = self._makers.get(name)
        if maker is None or maker.op_type != "Concat":
            return None
        pieces = [self._evaluate(piece) for piece in maker.input]
        lengths = [piece.size for piece in pieces if piece is not None and piece.ndim == 1]
        return (maker, lengths) if len(lengths) == len(pieces) else None


def override(sizes: Sizes, proto: onnx.NodeProto, position: int, wanted: Array, found: Array | None) -> None:
    """Give a node the operand `wanted`; what of it the file computes right (the batch, say) stays computed."""
    while len(proto.input) <= position:
        proto.input.append("")
    old = proto.input[position]
    if found is None or found.shape != wanted.shape or not old or not sizes.computes(old) or wanted.ndim != 1:
        kind = wanted.dtype if found is None else found.dtype
        proto.input[position] = sizes.constant(wanted.astype(kind), old)
        return
    wrong = found != wanted
    proto.input[position] = _pieces(sizes, proto, old, wanted.astype(found.dtype), wrong)


def _pieces(sizes: Sizes, proto: onnx.NodeProto, old: str, wanted: Array, wrong: Array) -> str:
    """A size vector like `old` with other numbers where it is wrong."""
    new = sizes.fresh(f"{old}_pruned")
    concat = sizes.concatenated(old)
    if concat is None:
        mask, values = sizes.constant(wrong, f"{old}_mask"), sizes.constant(wanted, old)
        sizes.add(helper.make_node("Where", [mask, values, old], [new], name=new), proto)
        return new
    maker, lengths = concat
    ends = np.cumsum([0, *lengths])
    inputs = [
        _pieces_or_same(sizes, proto, piece, wanted[a:b], wrong[a:b])
        for piece, a, b in zip(maker.input, ends[:-1], ends[1:], strict=True)
    ]
    sizes.add(helper.make_node("Concat", inputs, [new], name=new, axis=0), proto)
    return new


def _pieces_or_same(sizes: Sizes, proto: onnx.NodeProto, piece: str, wanted: Array, wrong: Array) -> str:
    if not wrong.any():
        return piece
    plain = wrong.all() or not sizes.computes(piece)
    return sizes.constant(wanted, piece) if plain else _pieces(sizes, proto, piece, wanted, wrong)
