"""An ONNX graph as an fx graph: one node for each of its nodes, float constants as parameters and buffers."""

from __future__ import annotations

import dataclasses
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray
from onnx_graphsurgeon.logger import G_LOGGER
from torch import Tensor, fx, nn

from subprune_fx.frontends.onnx_inner import inner
from subprune_fx.frontends.onnx_op import VARIADIC, OnnxOp
from subprune_fx.frontends.onnx_plain import FLOAT_KINDS, FLOATS, numbers
from subprune_fx.frontends.onnx_spelled import spelled

META = "onnx"
"""Key in `GraphModule.meta` under which an imported graph keeps its `Source`."""

_STATISTICS = {"BatchNormalization": (3, 4), "Resize": (1, 2), "Upsample": (1,)}
"""Inputs that torch keeps as buffers or as numbers: statistics and scales, not parameters."""
OPTIONAL = 13
"""Opset from which Resize may do without scales."""
_LEFT_OUT = {"Resize": (1, 2)}
"""Operands that may be empty in place of being left out: alone, with its sizes open, such a node is refused."""
_UNBIASED: Mapping[str, Callable[[tuple[int, ...], Mapping[str, Any]], int]] = {
    "Conv": lambda shape, _attributes: shape[0],
    "ConvTranspose": lambda shape, attributes: shape[1] * int(attributes.get("group", 1)),
    "Gemm": lambda shape, attributes: shape[0 if attributes.get("transB") else 1],
}
"""Ops that may lack a bias: how many channels it would have, by the weight's shape and the attributes."""
_OBJECTS = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclasses.dataclass(frozen=True)
class Source:
    """The ONNX model that an fx graph was made of.

    Attributes:
        model: The model, external data loaded.
        tensors: By parameter or buffer of the graph module, the name of the ONNX constant; several may share one.
        nodes: By fx node name, the position of the ONNX node; that of a fused one is the position of several.
        places: By fx node name, for those of a fused node, where their operands are among its own; -1: nowhere.
        values: By ONNX tensor name, the fx node that yields it, or (node, position) for one of several outputs.
        attributes: By fx node name, the attributes that the node had before anything was pruned.
        batch: The only batch size that the graph runs with; None for any.
        settled: Whether that has been found out.
        biases: Buffers, zeros at first, that nodes without a bias read as theirs: an intercept may go there.
        size: Bytes of the file that it was read from, external data included; 0: it was none.
        lists: Names of fx nodes that list channels where the file's nodes shuffle them.
        narrow: By fx node name and operand, the tensor that it reads where the file's node reads it expanded.
    """

    model: onnx.ModelProto
    tensors: dict[str, str]
    nodes: dict[str, int]
    values: dict[str, str | tuple[str, int]]
    attributes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    batch: int | None = None
    settled: bool = False
    biases: frozenset[str] = frozenset()
    size: int = 0
    places: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    narrow: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)

    def tensor(self, node: str) -> str:
        """The tensor of the file that an fx node yields; empty: none, it is a step of a fused node."""
        graph = self.model.graph
        own = {*(value.name for value in graph.input), *(name for step in graph.node for name in step.output)}
        return next((name for name, found in self.values.items() if found == node and name in own), "")

    def place(self, node: str, operand: int) -> int:
        """Where an operand of an fx node is among those of its ONNX node; -1: nowhere."""
        found = self.places.get(node)
        return operand if found is None or operand >= len(found) else found[operand]

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        """Itself: nobody changes it, and the model is as large as the network."""
        del memo
        return self


def source_of(module: nn.Module) -> Source | None:
    """The ONNX model that `module` came from, if it did."""
    found = getattr(module, "meta", {}).get(META)
    return found if isinstance(found, Source) else None


def import_graph(model: onnx.ModelProto) -> fx.GraphModule:
    """The graph of an ONNX model whose nodes onnxruntime runs one by one.

    Half and double precision become float32: the passes compute in it, and what is written back is converted.

    Args:
        model: With its external data loaded.
    """
    return _Importer(model).graph_module()


class _Importer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.spelled, self.origins = spelled(model)
        with G_LOGGER.suppress():  # on types that numpy lacks
            self.source = gs.import_onnx(self.spelled)
            self.constants = dict(_constants(self.source, self.spelled))
        self.outputs = {tensor.name for tensor in self.source.outputs}
        self.opset = next((entry.version for entry in model.opset_import if not _own(entry.domain)), 1)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.tensors: dict[str, str] = {}
        self.nodes: dict[str, int] = {}
        self.places: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, fx.Node | tuple[fx.Node, int]] = {}
        own = {name for node in model.graph.node for name in node.output}
        spelled_ = (name for node in self.spelled.graph.node if node.op_type == "Constant" for name in node.output)
        self.numbers = {name for name in spelled_ if name not in own}
        self.alias = _aliases(self.source, self.spelled, self.constants)
        self.statistics = _statistics(self.source)
        self.flat = _flat_biases(self.source)
        self.biases: list[str] = []

    def graph_module(self) -> fx.GraphModule:
        for tensor in self.source.inputs:
            if isinstance(tensor, gs.Variable):
                self.values[tensor.name] = self._placeholder(tensor.name)
        for position, (node, proto) in enumerate(zip(self.source.nodes, self.spelled.graph.node, strict=True)):
            known = node.outputs[0].name in self.constants or node.outputs[0].name in self.alias
            read = () if known else self._read(node)
            if read:
                self._node(position, node, proto, read)
        outputs = tuple(self._operand(tensor.name) for tensor in self.source.outputs)
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        module = fx.GraphModule(self.root, self.graph)
        values = {
            name: found.name if isinstance(found, fx.Node) else (found[0].name, found[1])
            for name, found in self.values.items()
        }
        biases = frozenset(self.biases)
        module.meta[META] = Source(self.model, self.tensors, self.nodes, values, biases=biases, places=self.places)
        return module

    def _placeholder(self, name: str) -> fx.Node:
        """Of one name as node and as argument: fx gives a node that is called like a builtin (`input`) another one."""
        holder = self.graph.placeholder(_identifier(name))
        holder.target = holder.name
        return holder

    def _node(self, position: int, node: gs.Node, proto: onnx.NodeProto, read: tuple[bool, ...]) -> None:
        bodies = [a for a in proto.attribute if any(inner(a))]
        captured = tuple(dict.fromkeys(name for a in bodies for name in _captured(a, self._known())))
        op, plain = operator_of(proto, self.model.opset_import, read, captured)
        none = self._empty(node)
        operands: list[Any] = [None if k in none else self._own_operand(t.name) for k, t in enumerate(node.inputs)]
        while operands and operands[-1] is None:
            operands.pop()
        operands += self._bias(node)
        operands += [self._operand(name) for name in captured]
        args = (operands,) if node.op in VARIADIC else tuple(operands)
        name = _identifier(node.name or f"{node.op}_{node.outputs[0].name}")
        made = self.graph.create_node("call_function", op, args, plain, name=name)
        origin = self.origins[position]
        self.nodes[made.name] = origin.position
        if origin.operands is not None:
            self.places[made.name] = origin.operands
        for number, tensor in enumerate(node.outputs[: len(read)]):
            if len(read) == 1:
                self.values[tensor.name] = made
            elif read[number]:
                self.values[tensor.name] = (made, number)

    def _empty(self, node: gs.Node) -> set[int]:
        """Places of operands that are there only because there is no leaving them out in older operators."""
        places = _LEFT_OUT.get(node.op, ()) if self.opset >= OPTIONAL else ()
        given = {place: self.constants.get(node.inputs[place].name) for place in places if place < len(node.inputs)}
        return {place for place, array in given.items() if array is not None and not array.size}

    def _read(self, node: gs.Node) -> tuple[bool, ...]:
        """Which outputs a node has, up to the last one that is read or that it must have; none where none is read."""
        read = [bool(tensor.name) and (bool(tensor.outputs) or tensor.name in self.outputs) for tensor in node.outputs]
        last = max((place + 1 for place, is_read in enumerate(read) if is_read), default=0)
        count = max(last, _least(node, self.opset)) if last else 0
        return tuple(bool(tensor.name) for tensor in node.outputs[:count])

    def _known(self) -> set[str]:
        return {*self.values, *self.constants, *self.alias}

    def _operand(self, name: str) -> Any:
        """The fx node of an ONNX tensor; None for one that is left out."""
        if not name:
            return None
        name = self.alias.get(name, name)
        if name not in self.values:
            self.values[name] = self._constant(name, self.constants[name])
        found = self.values[name]
        if isinstance(found, tuple):
            found = self.values[name] = self.graph.call_function(operator.getitem, found)
        return found

    def _own_operand(self, name: str) -> Any:
        """As `_operand`; of a vector that several nodes read, each gets its own.

        Exporters store equal vectors once: biases of unrelated layers that happen to be the same.
        """
        array = self.constants.get(self.alias.get(name, name))
        if array is None or array.dtype not in FLOATS or not 1 < array.size == max(array.shape, default=0):
            return self._operand(name)
        return self._constant(self.alias.get(name, name), array)

    def _constant(self, name: str, array: NDArray[Any]) -> fx.Node:
        attribute = self._attribute(name)
        array = as_imported(array)
        tensor = torch.from_numpy(np.array(array.reshape(-1) if name in self.flat else array))
        if tensor.is_floating_point() and tensor.numel() > 1 and name not in self.statistics:
            self.root.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        else:
            self.root.register_buffer(attribute, tensor)
        if name not in self.numbers:
            self.tensors[attribute] = name
        return self.graph.get_attr(attribute)

    def _bias(self, node: gs.Node) -> list[fx.Node]:
        """Zeros as the bias of a node that could have one, where nothing that follows could take an intercept."""
        channels = _UNBIASED.get(node.op)
        if channels is None or node.domain or len(node.inputs) != 2 or node.attrs.get("beta", 1.0) != 1.0:
            return []
        weight = self.constants.get(self.alias.get(node.inputs[1].name, node.inputs[1].name))
        followed = [user.op for user in node.outputs[0].outputs]
        if weight is None or weight.dtype not in FLOATS or followed in (["BatchNormalization"], ["Add"]):
            return []
        attribute = self._attribute(f"{node.name or node.outputs[0].name}_bias")
        self.root.register_buffer(attribute, torch.zeros(channels(weight.shape, node.attrs)))
        self.biases.append(attribute)
        return [self.graph.get_attr(attribute)]

    def _attribute(self, name: str) -> str:
        attribute = _identifier(name)
        while hasattr(fx.GraphModule, attribute) or hasattr(self.root, attribute) or attribute in self.tensors:
            attribute += "_"
        return attribute


def operator_of(
    proto: onnx.NodeProto,
    imports: Iterable[onnx.OperatorSetIdProto],
    read: tuple[bool, ...],
    captured: tuple[str, ...] = (),
) -> tuple[OnnxOp, dict[str, Any]]:
    """A node's operator, and its plain attributes.

    Args:
        proto: The node.
        imports: The model's opsets.
        read: For each output, whether anything reads it.
        captured: Outer tensors that its subgraphs read.
    """
    opsets = {_own(entry.domain): entry.version for entry in imports}
    plain = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in proto.attribute if a.type not in _OBJECTS}
    if "to" in plain:
        plain["to"] = _wide(int(plain["to"]))
    fixed = tuple(_as_float32(a).SerializeToString() for a in proto.attribute if a.type in _OBJECTS)
    domain = _own(proto.domain)
    return OnnxOp(proto.op_type, domain, opsets.get(domain, 1), read, fixed, captured), plain


def as_imported(array: NDArray[Any]) -> NDArray[Any]:
    """Half and double precision as float32, everything else as it is."""
    return array.astype(np.float32) if array.dtype in FLOATS else array


def _own(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _constants(graph: gs.Graph, model: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and value of every initializer and Constant node; those that only subgraphs read are none of `graph`."""
    tensors = graph.tensors()
    for proto in model.graph.initializer:
        if proto.name not in tensors:
            yield proto.name, onnx.numpy_helper.to_array(proto)
    for tensor in tensors.values():
        if isinstance(tensor, gs.Constant):
            yield tensor.name, np.asarray(tensor.values)
    for node in graph.nodes:
        if node.op == "Constant":
            yield node.outputs[0].name, _constant_value(node)


def _aliases(graph: gs.Graph, model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """What only hands a constant on.

    Identities, which torch's older exporter writes for constants that it found to be equal; and casts of floating-point
    numbers, which are all float32 here, as long as one reader is behind them: two may come to need different constants.
    """
    found: dict[str, str] = {}
    outputs = {tensor.name for tensor in graph.outputs}
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        if node.op not in ("Identity", "Cast") or node.outputs[0].name in outputs:
            continue
        name = found.get(node.inputs[0].name, node.inputs[0].name)
        alone = len(node.inputs[0].outputs) == len(node.outputs[0].outputs) == 1
        if name in constants and (node.op == "Identity" or (alone and _keeps(proto, constants[name]))):
            found[node.outputs[0].name] = name
    return found


def _keeps(cast: onnx.NodeProto, array: NDArray[Any]) -> bool:
    """Whether a cast leaves a constant what it is here."""
    to = next((a.i for a in cast.attribute if a.name == "to"), 0)
    return array.dtype in FLOATS and _wide(to) == onnx.TensorProto.FLOAT


def _constant_value(node: gs.Node) -> NDArray[Any]:
    ((kind, value),) = node.attrs.items()
    if isinstance(value, gs.Constant):
        return np.asarray(value.values)
    return numbers(kind, value)


def _statistics(graph: gs.Graph) -> set[str]:
    return {
        node.inputs[position].name
        for node in graph.nodes
        for position in _STATISTICS.get(node.op, ())
        if position < len(node.inputs)
    }


def _flat_biases(graph: gs.Graph) -> set[str]:
    """Gemm's C as a row (1, n) reads like a vector (n,)."""
    return {node.inputs[2].name for node in graph.nodes if node.op == "Gemm" and len(node.inputs) > 2}


def _least(node: gs.Node, opset: int) -> int:
    """How many outputs a node must have: of one with any number, all that it has (parts, or what a body gives).

    So has a BatchNormalization that takes its statistics from the batch.
    """
    if node.attrs.get("training_mode"):
        return len(node.outputs)
    if node.domain or not onnx.defs.has(node.op, opset, ""):  # fused nodes are spelled with newer operators
        return 0
    schema = onnx.defs.get_schema(node.op, opset)
    several = bool(schema.outputs) and schema.outputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return len(node.outputs) if several else int(schema.min_output)


def _captured(attribute: onnx.AttributeProto, known: set[str]) -> Iterator[str]:
    """Outer tensors that a graph attribute reads."""
    for graph in inner(attribute):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            yield from (name for name in node.input if name in known and name not in own)
            for held in node.attribute:
                yield from (name for name in _captured(held, known) if name not in own)
            own.update(node.output)
        yield from (value.name for value in graph.output if value.name in known and value.name not in own)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _wide(kind: int) -> int:
    """Half and double become float32."""
    return int(onnx.TensorProto.FLOAT) if kind in FLOAT_KINDS else kind


def _as_float32(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    if not attribute.HasField("t") or _wide(attribute.t.data_type) == attribute.t.data_type:
        return attribute
    array = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
    return onnx.helper.make_attribute(attribute.name, onnx.numpy_helper.from_array(array, attribute.t.name))


def _identifier(name: str) -> str:
    """An ONNX name as a Python identifier."""
    plain = re.sub(r"\W+", "_", name.strip("/")).strip("_") or "node"
    return f"n_{plain}" if plain[0].isdigit() or keyword.iskeyword(plain) or plain == "self" else plain


def tensor_of(source: Source, name: str, environment: Mapping[str, Any]) -> Any:
    """The value of an ONNX tensor, given the values of fx nodes by name."""
    found = source.values.get(name)
    if isinstance(found, tuple):
        value = environment.get(found[0])
        return None if value is None else value[found[1]]
    value = environment.get(found) if found is not None else None
    return value if isinstance(value, (Tensor, int, tuple)) else None
