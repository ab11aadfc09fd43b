"""One ONNX operator as a Python callable, run by onnxruntime: what the nodes of an imported graph call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from subprune_fx.frontends.onnx_native import NATIVE
from subprune_fx.sessions import opened, quiet

Array = NDArray[Any]
Value = Tensor | tuple[Tensor, ...]

VARIADIC = frozenset({"Concat"})
"""Ops whose operands are one list, as torch.cat takes them."""

_FILLING = {"Pad": 2}
"""Which operand has the type of the first: labels have another than the number that an activation is filled up with."""

_RANKS = 16
"""Longest list of sizes."""


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxOp:
    """An operator with what never changes about it; its plain attributes are keyword arguments of the call.

    Attributes:
        op_type: Its ONNX name.
        domain: Its domain, empty for ONNX's own.
        opset: Version of that domain.
        outputs: For each of the node's outputs, whether anything reads it.
        fixed: Attributes that are tensors or graphs, serialised.
        captured: Names of outer tensors that its subgraphs read, passed after the other operands.
    """

    op_type: str
    domain: str
    opset: int
    outputs: tuple[bool, ...]
    fixed: tuple[bytes, ...] = ()
    captured: tuple[str, ...] = ()

    @property
    def __name__(self) -> str:  # fx names nodes and generated code after it
        return self.op_type

    def __call__(self, *operands: Any, **attributes: Any) -> Value:
        """Run it.

        Args:
            operands: Tensors, integers and lists of integers in place of small int64 tensors, None for what is left
                out; one list of them for `VARIADIC` ops.
            attributes: The node's attributes.

        Returns:
            A tensor, or a tuple where the node has several outputs that are read.
        """
        given = operands[0] if self.op_type in VARIADIC else operands
        native = NATIVE.get(self.op_type)
        value = None if native is None or self.domain else native(given, attributes)
        if value is not None:
            return value
        arrays = [None if value is None else as_array(value) for value in given]
        place = _FILLING.get(self.op_type, len(arrays))
        filling = arrays[place] if place < len(arrays) else None
        if filling is not None and arrays[0] is not None:
            arrays[place] = filling.astype(arrays[0].dtype)
        try:
            return self._value(self._run(arrays, attributes))
        except Exception as error:
            if not any(array is not None and array.dtype == np.int64 and array.ndim for array in arrays[:1]):
                message = f"{self.op_type}: {str(error).strip() or type(error).__name__}"
                raise RuntimeError(message) from error  # onnxruntime's own classes share no base but Exception
        return self._run_as_float(arrays, attributes)

    def _run_as_float(self, arrays: list[Array | None], attributes: Mapping[str, Any]) -> Value:
        """Labels through an op without a kernel for int64 (DepthToSpace): floats hold them exactly."""
        first = arrays[0]
        assert first is not None
        kind = np.float32 if abs(first).max(initial=0) < 2 / np.finfo(np.float32).eps else np.float64
        try:
            found = self._run([first.astype(kind), *arrays[1:]], attributes)
        except Exception as error:
            message = f"{self.op_type}: {str(error).strip() or type(error).__name__}"
            raise RuntimeError(message) from error
        return self._value([array.astype(np.int64) for array in found])

    def _run(self, arrays: list[Array | None], attributes: Mapping[str, Any]) -> list[Array]:
        signature = tuple(None if array is None else kind_of(array, first=k == 0) for k, array in enumerate(arrays))
        spelled = tuple((name, _hashable(value)) for name, value in attributes.items())
        key = self.op_type, self.domain, self.opset, self.outputs, self.fixed, self.captured
        session, names = _session(key, spelled, signature)
        feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None and name}
        return [np.asarray(value) for value in session.run(None, feeds)]

    def _value(self, arrays: list[Array]) -> Value:
        tensors = [torch.from_numpy(array) for array in arrays]
        return tensors[0] if len(self.outputs) == 1 else tuple(_spread(self.outputs, tensors))


def _spread(wanted: tuple[bool, ...], tensors: list[Tensor]) -> list[Any]:
    queue = iter(tensors)
    return [next(queue) if read else None for read in wanted]


def item(vector: Tensor, index: int) -> int:
    """One element of an integer tensor, flat index: a size that depends on the batch."""
    return int(vector.reshape(-1)[index])


def as_array(value: Any) -> Array:
    """A tensor, number or list of numbers, or of lists, as onnxruntime takes it."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().contiguous().numpy())
    if isinstance(value, (list, tuple)):
        entries = [as_array(entry) if isinstance(entry, (list, tuple)) else int(entry) for entry in value]
        return np.asarray(entries, dtype=np.int64)
    return np.asarray(value, dtype=np.float32 if isinstance(value, float) else np.int64)


Kind = tuple[str, tuple[int | None, ...]]


def kind_of(array: Array, *, first: bool) -> Kind:
    """Type and shape, sizes left open; but shape inference wants the length of a list of sizes."""
    spelled = array.ndim == 1 and not first and array.size <= _RANKS
    return str(array.dtype), array.shape if spelled else (None,) * array.ndim


def proto_of(op: OnnxOp, names: Sequence[str], results: Sequence[str], attributes: Mapping[str, Any]) -> onnx.NodeProto:
    """A node that is this operator.

    Args:
        op: The operator.
        names: Of its inputs, without captured ones; empty: left out.
        results: Names of its outputs; empty: not read.
        attributes: Its plain attributes; None: left out.
    """
    node = helper.make_node(op.op_type, names, results, domain=op.domain)
    for name, value in attributes.items():
        if value is not None:
            node.attribute.append(helper.make_attribute(name, list(value) if isinstance(value, tuple) else value))
    node.attribute.extend(onnx.AttributeProto.FromString(raw) for raw in op.fixed)
    return node


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@functools.cache
def _session(
    key: tuple[Any, ...], attributes: tuple[tuple[str, Any], ...], signature: tuple[Kind | None, ...]
) -> tuple[Any, list[str]]:
    """A session of a model that is this one node, and the names of its inputs (empty: left out)."""
    op = OnnxOp(*key)
    explicit = len(signature) - len(op.captured)
    names = [f"i{k}" if kind else "" for k, kind in enumerate(signature[:explicit])] + list(op.captured)
    results = [f"o{k}" if read else "" for k, read in enumerate(op.outputs)]
    node = proto_of(op, names[:explicit], results, dict(attributes))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind[0])), list(kind[1]))
        for name, kind in zip(names, signature, strict=True)
        if kind is not None
    ]
    graph = helper.make_graph([node], op.op_type, inputs, [onnx.ValueInfoProto(name=name) for name in results if name])
    domains = {"": onnx.defs.onnx_opset_version(), op.domain: op.opset}
    imports = [helper.make_opsetid(name, version) for name, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = quiet(torch.get_num_threads(), optimised=False)
    options.enable_cpu_mem_arena = False  # every session would keep the most memory it ever needed
    options.enable_mem_pattern = False
    session = opened(model.SerializeToString(), options)
    return session, names
