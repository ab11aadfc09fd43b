"""What writes into a tensor in a captured program, as a value of its own for whoever reads the tensor behind it.

    y = x[a:b]; y.relu_()   ->   y = x[a:b]; z = relu(y); x' = slice_scatter(x, z, a, b)

torch.export does so too when it decomposes a program, but traces all of it anew: twice as long as capturing it takes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

aten = torch.ops.aten

WRITES: dict[object, OpOverload] = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.fill_.Scalar: aten.fill.Scalar,
    aten.fill_.Tensor: aten.fill.Tensor,
    aten.relu_.default: aten.relu.default,
    aten.silu_.default: aten.silu.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.tanh_.default: aten.tanh.default,
}
"""Operators that write into their first operand, and those that give the same as a value of its own."""

SCATTERS: dict[object, OpOverload] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}
"""Views of a part, and what puts another value there."""

IDENTITIES = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.type_as.default)
"""Operators that may give their operand, though their schemas do not say so."""


def valued(node: fx.Node) -> bool:
    """Let a node that writes give a value instead; False, and nothing changed, where that takes more than this."""
    exchange = _EXCHANGES.get(node.target)
    return exchange is not None and exchange(node)


def writes(target: object) -> bool:
    """Whether an operator writes into an operand."""
    return isinstance(target, OpOverload) and target._schema.is_mutable  # noqa: SLF001 - the only way to ask


def is_view(node: fx.Node) -> bool:
    """Whether its value may be a part of an operand, or the whole."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    returns = node.target._schema.returns  # noqa: SLF001 - the only way to ask
    return node.target in IDENTITIES or any(value.alias_info is not None for value in returns)


def _computed(node: fx.Node) -> bool:
    """y.relu_()."""
    base, views = _behind(node)
    if not _can_follow(base, views, node):
        return False
    node.target = WRITES[node.target]
    _put(base, views, node, node)
    return True


def _copied(node: fx.Node) -> bool:
    """y.copy_(z): whoever reads y reads z."""
    (base, views), value = _behind(node), node.args[1]
    if not isinstance(value, fx.Node) or node.users or not _can_follow(base, views, node):
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq  # noqa: PLC0415 - imports sympy

    sizes = [one.meta["val"].shape for one in node.all_input_nodes]
    if not all(statically_known_true(sym_eq(size, sizes[0])) for size in sizes):  # it would be repeated
        return False
    if _held(base, views) is not value:  # x[a:b] += y writes, and then puts there what is there
        _put(base, views, node, value)
    node.graph.erase_node(node)
    return True


def _kept(node: fx.Node) -> bool:
    """dropout_(x) -> dropout(x), where it changes nothing."""
    if not node.args[2]:
        node.target = aten.dropout.default
    return True


_EXCHANGES: dict[object, Callable[[fx.Node], bool]] = {
    **dict.fromkeys(WRITES, _computed),
    aten.copy_.default: _copied,
    aten.dropout_.default: _kept,
}


def _behind(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The tensor that a node writes into, and the views through which it does, the last first."""
    base, views = node.args[0], list[fx.Node]()
    assert isinstance(base, fx.Node)
    while base.target in SCATTERS and not base.kwargs:
        views.append(base)
        base = base.args[0]
        assert isinstance(base, fx.Node)
    return base, views


def _can_follow(base: fx.Node, views: Sequence[fx.Node], node: fx.Node) -> bool:
    """Whether all that sees what a node writes is known to be behind it."""
    if not isinstance(base.target, OpOverload) or is_view(base):
        return False
    if any(user.op == "output" for user in base.users if user > node) or _seen_later(base, node):
        return False
    if views and node.users and not _read_at_once(base, node):
        return False
    values = [used.meta["val"] for used in node.all_input_nodes]
    # Were there several, the value would be of the wider type.
    return len({value.dtype for value in values if isinstance(value, Tensor)}) == 1


def _seen_later(tensor: fx.Node, node: fx.Node) -> bool:
    """Whether what was cut out of a tensor before a node is read behind it, where it would show what was written."""
    views = [user for user in tensor.users if user < node and is_view(user)]
    return any(any(user > node for user in view.users) or _seen_later(view, node) for view in views)


def _read_at_once(base: fx.Node, node: fx.Node) -> bool:
    """Whether what a node gives is read before the tensor that it has written into is written into again."""
    later = (other for other in node.graph.nodes if other > node and writes(other.target))
    again = next((other for other in later if _root(other) is base), None)
    return not any(
        (is_view(user) and not _writes_elsewhere(user, node)) or (again is not None and user > again)
        for user in node.users
    )


def _writes_elsewhere(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node writes what another gives into a third: its own value is then a part of that one."""
    return writes(user.target) and user.args[0] is not node


def _root(node: fx.Node) -> object:
    """The tensor that a node writes into, through whatever views."""
    base = node.args[0]
    while isinstance(base, fx.Node) and is_view(base) and base.args:
        base = base.args[0]
    return base


def _held(base: fx.Node, views: Sequence[fx.Node]) -> object:
    """The value that has been put where the views look, if that was the last that happened to the tensor."""
    value: object = base
    for view in reversed(views):
        if not isinstance(value, fx.Node) or value.target is not SCATTERS[view.target]:
            return None
        if value.args[2:] != view.args[1:]:
            return None
        value = value.args[1]
    return value


def _put(base: fx.Node, views: Sequence[fx.Node], node: fx.Node, value: fx.Node) -> None:
    """Let who reads a tensor behind a node read it with `value` where the views look."""
    later, place = [user for user in base.users if user > node], node
    for view in views:
        whole = view.args[0]
        assert isinstance(whole, fx.Node)
        with node.graph.inserting_after(place):
            value = place = node.graph.call_function(SCATTERS[view.target], (whole, value, *view.args[1:]))
        value.meta = dict(whole.meta)
    base.replace_all_uses_with(value, delete_user_cb=later.__contains__)
