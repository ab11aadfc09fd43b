"""One node of an imported ONNX graph as a call with the argument names that torch uses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.graph.kinds import Axes, Row
from subprune_fx.graph.optable import BY_ONNX, BY_TORCH
from subprune_fx.graph.whole import WHOLE

Arguments = dict[str, Any]

NAMES = {"Sum": "add"}
"""ONNX op type -> torch's name of it, where that is not the same in lower case."""

_WEIGHTED = ("input", "weight", "bias")
_INPUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), _WEIGHTED),
    **dict.fromkeys(
        (
            "InstanceNormalization",
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "GroupNormalization",
        ),
        _WEIGHTED,
    ),
    "MatMul": ("input", "other"),
    "ScatterND": ("input", "indices", "values"),
    "Attention": ("query", "key", "value", "attn_mask"),
    "BatchNormalization": (*_WEIGHTED, "running_mean", "running_var"),
}
_PARAMETERS = frozenset({*_WEIGHTED[1:], "other", "running_mean", "running_var"})
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    op_type: tuple(place for place, name in enumerate(names) if name in _PARAMETERS)
    for op_type, names in _INPUTS.items()
}
"""By op type, which operands are a layer's parameters, if they are constants."""
_ATTRIBUTES: Mapping[str, str] = {
    "group": "groups",
    "strides": "stride",
    "dilations": "dilation",
    "output_padding": "output_padding",
    "axes": "dim",
    "axis": "dim",
    "keepdims": "keepdim",
    "num_groups": "num_groups",
    "mode": "mode",
    "epsilon": "eps",
}
"""ONNX attribute -> torch argument."""


def describe_call(node: fx.Node, target: OnnxOp, root: Any) -> tuple[Row | None, Arguments]:
    """The row and the named arguments of one node.

    Args:
        node: The node.
        target: What it calls.
        root: The graph module, to look at weights.
    """
    names = _INPUTS.get(target.op_type, ("input",))
    arguments: Arguments = dict(zip(names, node.args, strict=False))
    arguments.update({_ATTRIBUTES[key]: value for key, value in node.kwargs.items() if key in _ATTRIBUTES})
    rule = _SPECIAL.get(target.op_type)
    row = row_of(target)
    return row if rule is None or target.domain else rule(node, root, arguments, row), arguments


def row_of(target: OnnxOp) -> Row | None:
    """The row of an operator, however it is used."""
    return BY_ONNX.get(f"{target.domain}.{target.op_type}" if target.domain else target.op_type)


def whole_reason(op_types: Iterable[str]) -> str | None:
    """Why the first of some operators that stay whole does; None: none is known to."""
    return next((WHOLE[op_type] for op_type in op_types if op_type in WHOLE), None)


def constant_of(argument: Any, root: Any) -> Tensor | None:
    """The parameter or buffer that an argument is, if it is one."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    found = getattr(root, str(argument.target))
    return found if isinstance(found, Tensor) else None


def _attribute(node: fx.Node, name: str, default: Any) -> Any:
    found = node.kwargs.get(name)
    return default if found is None else found


Rule = Callable[[fx.Node, Any, Arguments, Row | None], Row | None]


def _gemm(node: fx.Node, _root: Any, _arguments: Arguments, row: Row | None) -> Row | None:
    """The weight lies as `transB` says; scaled or transposed forms are left alone."""
    plain = not node.kwargs.get("transA") and node.kwargs.get("alpha", 1.0) == node.kwargs.get("beta", 1.0) == 1.0
    if row is None or not plain:
        return None
    return row if node.kwargs.get("transB") else dataclasses.replace(row, axes=Axes(-1, 0, 1))


def _einsum(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """The equation is an attribute."""
    arguments.update(equation=node.kwargs.get("equation"), operands=node.args)
    return row


def _layer_norm(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """All dimensions from `axis` on."""
    rank = len(node.meta.get("shape") or ())
    axis = int(_attribute(node, "axis", -1))
    arguments["dim"] = tuple(range(axis % rank, rank)) if rank else (axis,)
    return row


def _group_norm(node: fx.Node, _root: Any, _arguments: Arguments, row: Row | None) -> Row | None:
    """Up to opset 20 its parameters were one a group."""
    assert isinstance(node.target, OnnxOp)
    return row if node.target.opset >= 21 else None


def _attention(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """With heads on a dimension of their own, and no past to read or hand on; a key head may serve several queries."""
    assert isinstance(node.target, OnnxOp)
    plain = len(node.meta.get("shape") or ()) == 4 and not any(node.args[4:]) and len(node.target.outputs) == 1
    arguments["enable_gqa"] = True
    return row if plain else None


def _gather(node: fx.Node, root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """Rows of a table, or positions of an activation."""
    table = constant_of(node.args[0], root)
    if table is not None and table.ndim == 2 and table.is_floating_point() and not node.kwargs.get("axis"):
        arguments.update(weight=node.args[0], input=node.args[1])
        return row
    return BY_TORCH["index_select"]


def _gather_nd(node: fx.Node, _root: Any, _arguments: Arguments, _row: Row | None) -> Row | None:
    """As torch exports `x[:, list]`: a column of positions of the first dimension, which has been brought there."""
    places: Any = node.args[1]
    column = isinstance(places, (list, tuple)) and all(isinstance(row, list) and len(row) == 1 for row in places)
    return BY_TORCH["index_select"] if column and not node.kwargs.get("batch_dims") else None


def _softmax(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """Up to opset 12 it flattens: all dimensions from `axis` on, 1 unless stated."""
    assert isinstance(node.target, OnnxOp)
    shape = node.meta.get("shape") or ()
    if node.target.opset >= 13:
        arguments["dim"] = node.kwargs.get("axis", -1)
    else:
        axis = _attribute(node, "axis", 1)
        arguments["dim"] = tuple(range(axis % max(len(shape), 1), len(shape)))
    return row


def _first_axis(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """Along the first dimension unless stated."""
    arguments["dim"] = int(_attribute(node, "axis", 0))
    return row


def _axes_input(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """Newer opsets pass axes as an operand."""
    if len(node.args) > 1 and node.args[1] is not None:
        if isinstance(node.args[1], fx.Node):
            return None
        arguments["dim"] = node.args[1]
    return row


def _pad(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """All befores, then all afters -> torch's pairs, last dimension first."""
    pads = pads_of(node)
    if pads is None:
        return None
    rank = len(node.meta.get("shape") or ())
    arguments["pad"] = [amount for d in reversed(range(rank)) for amount in (pads[d], pads[rank + d])]
    return row if node.kwargs.get("mode", "constant") == "constant" else BY_TORCH["reflectionpad2d"]


def pads_of(node: fx.Node) -> list[int] | None:
    """Padding of every dimension, befores then afters; None where it is computed."""
    rank = len(node.meta.get("shape") or ())
    spelled: Any = node.kwargs.get("pads") or (node.args[1] if len(node.args) > 1 else None)
    if not isinstance(spelled, (list, tuple)) or not all(isinstance(amount, int) for amount in spelled):
        return None
    axes: Any = node.args[3] if len(node.args) > 3 and node.args[3] is not None else range(rank)
    if isinstance(axes, fx.Node):
        return None
    pads, half = [0] * (2 * rank), len(spelled) // 2
    for k, axis in enumerate(axes):
        pads[axis % rank], pads[rank + axis % rank] = spelled[k], spelled[k + half]
    return pads


def _elementwise(_node: fx.Node, _root: Any, _arguments: Arguments, _row: Row | None) -> Row | None:
    """PRelu's slope is broadcast like any operand."""
    return BY_TORCH["mul"]


def _norm(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """In training mode it takes its statistics from the batch, and hands them on."""
    assert isinstance(node.target, OnnxOp)
    arguments["training"] = bool(node.kwargs.get("training_mode"))
    return row if len(node.target.outputs) == 1 else None


def _clip(node: fx.Node, root: Any, _arguments: Arguments, row: Row | None) -> Row | None:
    """Constant outside two numbers."""
    bounds = [-math.inf, math.inf]
    for k, name in enumerate(("min", "max")):
        spelled = node.args[k + 1] if len(node.args) > k + 1 else node.kwargs.get(name)
        value = constant_of(spelled, root)
        if value is not None and value.numel() == 1:
            spelled = float(value)
        if isinstance(spelled, fx.Node):
            return row
        bounds[k] = bounds[k] if spelled is None else float(spelled)  # type: ignore[arg-type]
    return None if row is None else dataclasses.replace(row, flat=(bounds[0], bounds[1]))


def _conv(node: fx.Node, _root: Any, arguments: Arguments, row: Row | None) -> Row | None:
    """Padding before and after each dimension."""
    pads = list(_attribute(node, "pads", ()))
    if pads:
        half = len(pads) // 2
        arguments["padding"] = tuple(zip(pads[:half], pads[half:], strict=True))
    return row if node.kwargs.get("output_shape") is None else None


_SPECIAL: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "Attention": _attention,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "BatchNormalization": _norm,
    "Clip": _clip,
    "PRelu": _elementwise,
    **dict.fromkeys(("ArgMax", "ArgMin", "GatherElements", "ScatterElements"), _first_axis),
    **dict.fromkeys(
        (
            *(
                "ReduceMean",
                "ReduceSum",
                "ReduceMax",
                "ReduceMin",
                "ReduceProd",
                "ReduceL1",
                "ReduceL2",
                "ReduceLogSum",
            ),
            *("ReduceLogSumExp", "ReduceSumSquare", "CumSum"),
        ),
        _axes_input,
    ),
}
"""Ops whose row or arguments depend on how they are used."""
