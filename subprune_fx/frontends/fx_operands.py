"""What a call reads, as the rule of its op expects it: parameters by role, operands in order, and further facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.frontends.calls import Call, dims, pads, still
from subprune_fx.frontends.fx_products import attention_operands, factors, is_scaled, is_stack, is_weight, letters
from subprune_fx.frontends.fx_recurrent import facts as recurrent_facts
from subprune_fx.frontends.fx_seen import Seen
from subprune_fx.frontends.onnx_calls import row_of
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.graph.kinds import MOVING, Kind
from subprune_fx.graph.labels import varying
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Param, Tree, leaves


def facts(call: Call, tensors: list[fx.Node], seen: Seen) -> tuple[dict[str, Param], list[fx.Node], dict[str, Any]]:
    """Parameters by role, tensor operands in the order that the rule expects them, and what else it reads."""
    roles = _roles(call, seen)
    kind = None if call.row is None else call.row.kind
    if kind is Kind.ATTENTION:
        return roles, seen.tensors(attention_operands(call)), {"grouped": bool(call.get("enable_gqa", False))}
    if kind is not Kind.PRODUCT:
        return roles, tensors, {}
    left, right, added = factors(call)
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return roles, tensors, {"letters": None}
    found = letters(call, (seen.values[left].ndim, seen.values[right].ndim))
    rest = [added] if isinstance(added, fx.Node) else []
    if found is None:
        return roles, tensors, {"letters": None}
    for weight, other, (a, b) in ((right, left, (1, 0)), (left, right, (0, 1))):
        param, bias = seen.trees[weight], seen.trees[rest[0]] if rest else None
        if not isinstance(param, Param) or isinstance(seen.trees[other], Param) or is_scaled(call):
            continue
        if not any(fits(found[a], found[b], found[2]) for fits in (is_weight, is_stack)):
            continue
        if not (bias is None or _is_vector(bias)):
            continue
        roles = {"weight": param} if bias is None else {"weight": param, "bias": bias}
        return roles, [other], {"letters": (found[b], found[a], found[2]), "shuffled": bool(call.get("shuffled"))}
    return roles, [left, right, *rest], {"letters": found}


def _roles(call: Call, seen: Seen) -> dict[str, Param]:
    if call.row is None:
        return {}
    roles = {}
    for role in call.row.roles:
        value = call.get(role)
        if isinstance(value, fx.Node):
            value = seen.trees[value]
        if isinstance(value, Tensor):
            value = seen.param(f"{call.path}.{role}", value)
        if isinstance(value, Param):
            roles[role] = value
    return roles


def _is_vector(operand: Tree | Param) -> bool:
    return isinstance(operand, Param) and len(operand.shape) == 1


def attributes(
    node: fx.Node, call: Call, operands: Sequence[Tree | Param], seen: Seen, state: Propagation
) -> dict[str, Any]:
    """What else the rule of its kind reads, see `Step.attrs`."""
    shapes = [operand.shape for operand in operands if isinstance(operand, Param) or hasattr(operand, "shape")]
    rank = len(shapes[0]) if shapes else 0
    attrs: dict[str, Any] = {
        "dims": seen.value(dims(call, rank)),
        "groups": seen.value(call.get("groups", 1)),
        "still": still(call, rank),
    }
    if call.row is None:
        attrs["opaque"] = call.module is not None and any(True for _ in call.module.parameters())
        attrs["known"] = isinstance(node.target, OnnxOp) and row_of(node.target) is not None
        return attrs
    if call.row.kind is Kind.PAD:
        attrs["pads"] = pads(seen.value(call.get("pad", call.get("padding"))), rank)
    if call.row.kind is Kind.NORM and call.get("normalized_shape") is not None:
        attrs["shape"] = seen.value(call.get("normalized_shape"))
    if call.row.kind is Kind.GROUP_NORM:
        attrs["groups"] = seen.value(call.get("num_groups"))
    if call.row.kind is Kind.SCATTER:
        attrs["range"] = (int(call.get("dim", 0)), seen.value(_range(call, seen)))
    if call.row.kind is Kind.PUT:
        attrs["indexed"] = _indexed(seen.value(call.get("indices")))
    if call.row.kind is Kind.RECURRENT:
        attrs.update(recurrent_facts(node))
    if call.row.kind is Kind.SPREAD:
        attrs["samples"] = _over_samples(node, seen)
    if call.row.kind in MOVING:
        where, key = seen.first_tensors(node)
        first = None if where is None else getattr(node, where)[key]
        attrs["moved"] = sum(len(leaves(state.of(tree))) for tree in seen.operands(first))
    return attrs


def _range(call: Call, seen: Seen) -> slice:
    """Where it writes along a dimension."""
    place = seen.value(call.get("index"))
    if isinstance(place, int):
        return slice(place, place + 1 or None)
    return slice(call.get("start"), call.get("end"), call.get("step"))


def _indexed(places: Any) -> int | None:
    """How many dimensions are given places for: by one tensor each, by a mask, or by the last dimension of a tensor."""
    if isinstance(places, Tensor):
        return int(places.shape[-1])
    if not isinstance(places, (tuple, list)) or not all(isinstance(place, Tensor) for place in places):
        return None
    return sum(place.ndim if place.dtype in (torch.bool, torch.uint8) else 1 for place in places)


def _over_samples(node: fx.Node, seen: Seen) -> set[int]:
    """Dimensions of the output that are as large as there are samples, by the sizes that the node is told."""
    sizes = node.args[1] if len(node.args) == 2 else node.args[1:]
    if isinstance(sizes, (tuple, list)):
        return {d for d, size in enumerate(sizes) if size in seen.varying and not _is_cut(size, seen)}
    return {0} if sizes in seen.varying else set()


def _is_cut(size: fx.Node, seen: Seen) -> bool:
    """Whether a size is that of a dimension that may lose channels: it then comes out right by itself."""
    if size.target is not torch.ops.aten.sym_size.int:
        return False
    tree, d = seen.trees[size.all_input_nodes[0]], int(size.args[1])  # type: ignore[arg-type]
    return not isinstance(tree, Param) and d % tree.ndim in varying(tree)
