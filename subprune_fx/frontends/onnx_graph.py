"""An ONNX graph as an fx graph: one node for each of its nodes, float constants as parameters and buffers."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray
from onnx_graphsurgeon.logger import G_LOGGER
from torch import fx, nn

from subprune_fx.frontends.onnx_constants import aliases, as_imported, constants_of, flat_biases, statistics
from subprune_fx.frontends.onnx_inner import inner
from subprune_fx.frontends.onnx_nodes import captured_names, least_outputs, operator_of, own_domain
from subprune_fx.frontends.onnx_op import VARIADIC
from subprune_fx.frontends.onnx_plain import FLOATS
from subprune_fx.frontends.onnx_source import META, Source
from subprune_fx.frontends.onnx_spelled import spelled

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
            self.constants = dict(constants_of(self.source, self.spelled))
        self.outputs = {tensor.name for tensor in self.source.outputs}
        self.opset = next((entry.version for entry in model.opset_import if not own_domain(entry.domain)), 1)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.tensors: dict[str, str] = {}
        self.nodes: dict[str, int] = {}
        self.places: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, fx.Node | tuple[fx.Node, int]] = {}
        own = {name for node in model.graph.node for name in node.output}
        spelled_ = (name for node in self.spelled.graph.node if node.op_type == "Constant" for name in node.output)
        self.numbers = {name for name in spelled_ if name not in own}
        self.alias = aliases(self.source, self.spelled, self.constants)
        self.statistics = statistics(self.source)
        self.flat = flat_biases(self.source)
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
        captured = tuple(dict.fromkeys(name for a in bodies for name in captured_names(a, self._known())))
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
        count = max(last, least_outputs(node, self.opset)) if last else 0
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


def _identifier(name: str) -> str:
    """An ONNX name as a Python identifier."""
    plain = re.sub(r"\W+", "_", name.strip("/")).strip("_") or "node"
    return f"n_{plain}" if plain[0].isdigit() or keyword.iskeyword(plain) or plain == "self" else plain
