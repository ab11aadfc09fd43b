"""Several nodes of an imported ONNX graph in one onnxruntime session, as it runs a whole model: fused and optimised.

A node alone gets its weights as operands, which onnxruntime cannot rearrange, and writes its output to fresh memory.
Measured on PP-OCR's detector, whose activations are spelled Add - Clip - Mul - Div, the two networks of a sweep took as
long as 3.7 runs of the whole file that way, and 2.3 in stretches.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

from subprune_fx.frontends.onnx_op import VARIADIC, Array, Kind, OnnxOp, as_array, kind_of, proto_of
from subprune_fx.sessions import opened, quiet, shared

if TYPE_CHECKING:
    import onnxruntime

LARGE = 1 << 16
"""Bytes from which a constant is handed over as it is: in the model it would be there several times."""

Environment = Mapping[fx.Node, Any]
Stretch = tuple[fx.Node, ...]


def stretches(nodes: Sequence[fx.Node], heads: Collection[str], constant: Collection[fx.Node]) -> list[Stretch]:
    """Nodes in an order in which they can be run, those together that one session can run.

    Args:
        nodes: Of a graph, in order.
        heads: Names of nodes that a stretch begins with: nothing before them is run together with them.
        constant: Nodes that depend on no input; each stands alone, before what reads it.
    """
    found: list[Stretch] = []
    open_: list[fx.Node] = []
    for node in nodes:
        if node in constant:
            found.append((node,))
            continue
        torn = node.target is operator.getitem and node.args[0] not in open_
        if open_ and (node.name in heads or torn or not fusable(node)):
            found.append(tuple(open_))
            open_ = []
        open_.append(node)
        if torn or not fusable(node):
            found.append((node,))
            open_ = []
    return [*found, tuple(open_)] if open_ else found


def fusable(node: fx.Node) -> bool:
    """Whether a node can be part of a session: an operator without outer tensors, or one of its outputs."""
    if isinstance(node.target, OnnxOp):
        return not node.target.captured
    return node.target is operator.getitem and fusable(node.args[0])  # type: ignore[arg-type]


def together(stretch: Stretch) -> bool:
    """Whether a stretch is run in a session; of one that begins with an output alone, the value is there already."""
    return fusable(stretch[0]) and stretch[0].target is not operator.getitem


class Fused:
    """A session for some nodes.

    Attributes:
        wanted: The nodes whose values it gives.
    """

    def __init__(
        self, nodes: Sequence[fx.Node], wanted: Sequence[fx.Node], constants: Environment, sample: Environment
    ) -> None:
        """Set up.

        Args:
            nodes: In order, all `fusable`.
            wanted: Those whose values are read elsewhere.
            constants: Values of nodes that are the same in every call; they are made part of the model.
            sample: Values of the other nodes that are read, to see their types.
        """
        self.wanted = list(wanted)
        self._nodes, self._inside, self._constants, self._sample = nodes, set(nodes), constants, sample
        self._feeds: dict[str, tuple[Any, onnx.ValueInfoProto]] = {}
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._large: dict[str, onnxruntime.OrtValue] = {}
        self._domains: dict[str, int] = {}
        protos = [self._proto(node) for node in nodes if isinstance(node.target, OnnxOp)]
        self._names = [_outputs(node) for node in self.wanted]
        self._fetched = list(dict.fromkeys(name for names in self._names for name in names if name))
        graph = helper.make_graph(
            protos,
            "stretch",
            [value for _, value in self._feeds.values()],
            [onnx.ValueInfoProto(name=name) for name in self._fetched],
            list(self._initializers.values()),
        )
        self._domains.setdefault("", onnx.defs.onnx_opset_version())
        imports = [helper.make_opsetid(name, version) for name, version in self._domains.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        options = quiet(torch.get_num_threads(), pooled=True)
        options.add_external_initializers(list(self._large), list(self._large.values()))
        self._session = _session(model, options)

    def __call__(self, environment: Environment) -> dict[fx.Node, Any]:
        """The values of the wanted nodes.

        Args:
            environment: Values of what the nodes read, as far as they are no constants.
        """
        if self._session is None:
            return self._apart(environment)
        feeds = {name: as_array(_value(argument, environment)) for name, (argument, _) in self._feeds.items()}
        fetched = dict(zip(self._fetched, self._session.run(self._fetched, feeds), strict=True))
        tensors = {name: torch.from_numpy(array) for name, array in fetched.items()}
        found: dict[fx.Node, Any] = {}
        for node, names in zip(self.wanted, self._names, strict=True):
            values = tuple(tensors[name] if name else None for name in names)
            found[node] = values if _several(node) else values[0]
        return found

    def _apart(self, environment: Environment) -> dict[fx.Node, Any]:
        """The same node by node."""
        known = {**self._constants, **environment}
        for node in self._nodes:
            target: Any = node.target
            known[node] = target(*_value(node.args, known), **_value(node.kwargs, known))
        return {node: known[node] for node in self.wanted}

    def _proto(self, node: fx.Node) -> onnx.NodeProto:
        op = node.target
        assert isinstance(op, OnnxOp)
        self._domains[op.domain] = op.opset
        given: Any = node.args[0] if op.op_type in VARIADIC else node.args
        names = [self._operand(f"{node.name}:i{k}", argument, first=k == 0) for k, argument in enumerate(given)]
        return proto_of(op, names, _outputs(node), node.kwargs)

    def _operand(self, name: str, argument: Any, *, first: bool) -> str:
        """The name of an operand, which becomes an input or a constant of the model where it is none of its nodes."""
        if argument is None:
            return ""
        known = isinstance(argument, fx.Node)
        if known and (argument in self._inside):
            return _outputs(argument)[0]
        name = argument.name if known else name
        fixed = argument in self._constants if known else not _depends(argument)
        source = self._constants if fixed else self._sample
        if fixed and name not in self._initializers:
            self._initializers[name] = self._constant(name, as_array(_value(argument, source)))
        if not fixed and name not in self._feeds:
            self._feeds[name] = argument, _info(name, kind_of(as_array(_value(argument, source)), first=first))
        return name

    def _constant(self, name: str, array: Array) -> onnx.TensorProto:
        """An initializer."""
        if array.nbytes < LARGE:
            return numpy_helper.from_array(array, name)
        self._large[name] = shared(array)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        made = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": "memory", "offset": "0", "length": str(array.nbytes)}.items():
            made.external_data.add(key=key, value=value)
        return made


def _session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession | None:
    """A session; None where shape inference errs on sizes that are left open (Attention's, on hidden sizes)."""
    try:
        return opened(model.SerializeToString(), options)
    except Exception:  # noqa: BLE001 - onnxruntime's own classes share no base but Exception
        return None


def _info(name: str, kind: Kind) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind[0])), list(kind[1]))


def _depends(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and any(isinstance(entry, fx.Node) for entry in argument)


def _value(argument: Any, environment: Environment) -> Any:
    return fx.map_arg(argument, lambda node: environment[node])


def _several(node: fx.Node) -> bool:
    return isinstance(node.target, OnnxOp) and len(node.target.outputs) > 1


def _outputs(node: fx.Node) -> list[str]:
    """Names of a node's outputs, empty where nothing reads them; an output that is taken is the one it is taken of."""
    if not isinstance(node.target, OnnxOp):
        source, position = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(position, int)
        return [_outputs(source)[position]]
    outputs = node.target.outputs
    return [node.name] if len(outputs) == 1 else [f"{node.name}:{k}" if read else "" for k, read in enumerate(outputs)]
