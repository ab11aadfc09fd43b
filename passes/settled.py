"""A captured program whose operators the ONNX exporter takes as they are.

The exporter decomposes every program once more, which traces it anew: more than half of what an export takes. Of most
networks nothing has to be decomposed but what writes into a tensor, as `x.relu_()`, and pooling to a single position.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

aten = torch.ops.aten

KNOWN_STATISTICS = aten._native_batch_norm_legit_no_training.default  # noqa: SLF001 - the name that the exporter knows

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


IDENTITIES = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.type_as.default)
"""Operators that may give their operand, though their schemas do not say so."""


class Settled(ExportedProgram):
    """A program that is decomposed only where it has to be."""

    def run_decompositions(
        self, decomp_table: dict[OpOverload, Callable[..., Any]] | None = None, **options: Any
    ) -> ExportedProgram:
        """The program without the operators of a table; itself, where that takes no more than exchanging some."""
        if decomp_table is not None and _exchanged(self.graph, decomp_table):
            return self
        found: ExportedProgram = super().run_decompositions(decomp_table, **options)
        return found


def settled(program: ExportedProgram) -> Settled:
    """The same program, with a graph of its own and the weights of the other."""
    return Settled(
        program.graph_module,
        copy.deepcopy(program.graph),
        program.graph_signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )


def _exchanged(graph: fx.Graph, table: Mapping[OpOverload, Any]) -> bool:
    """Exchange what can be; whether nothing is left that writes or is in the table."""
    for exchanges in (dict.fromkeys(WRITES, _valued), EXCHANGES):
        for node in _calls(graph):
            exchange = exchanges.get(node.target)
            if exchange is not None and not exchange(node):
                return False
    targets = [node.target for node in _calls(graph)]
    return not any(isinstance(target, HigherOrderOperator) or target in table or _writes(target) for target in targets)


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def _renamed(node: fx.Node) -> bool:
    """swapaxes(x, 0, 1) -> transpose(x, 0, 1)."""
    node.target = aten.transpose.int
    return True


def _pooled(node: fx.Node) -> bool:
    """adaptive_avg_pool2d(x, 1) -> mean(x, (-2, -1))."""
    if list(node.args[1]) == [1, 1]:  # type: ignore[arg-type]
        node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)
    return True


def _kept(node: fx.Node) -> bool:
    """dropout_(x) -> dropout(x), where it changes nothing."""
    if not node.args[2]:
        node.target = aten.dropout.default
    return True


def _normalised(node: fx.Node) -> bool:
    """batch_norm(x, ...) -> the operator for statistics that are known."""
    *tensors, training, momentum, epsilon, _ = node.args
    if training or any(tensor is None for tensor in tensors):
        return False
    with node.graph.inserting_before(node):
        found = node.graph.call_function(KNOWN_STATISTICS, (*tensors, momentum, epsilon))
    empty = node.meta["val"].new_empty(0)
    found.meta = {**node.meta, "val": (node.meta["val"], empty, empty)}
    node.target, node.args = operator.getitem, (found, 0)
    return True


def _valued(node: fx.Node) -> bool:
    """Let a node that writes give a value instead, for whoever reads the tensor behind it; False where others do.

    y = x[a:b]; y.relu_()   ->   y = x[a:b]; z = relu(y); x' = slice_scatter(x, z, a, b)
    """
    base, views = node.args[0], list[fx.Node]()
    while isinstance(base, fx.Node) and base.target is aten.slice.Tensor and not base.kwargs:
        views.append(base)
        base = base.args[0]
    if not isinstance(base, fx.Node) or not isinstance(base.target, OpOverload) or _is_view(base):
        return False
    later = [user for user in base.users if user > node]
    if any(user.op == "output" for user in later) or _seen_later(base, node):
        return False
    if views and node.users:  # what they see, and write, would have to follow the tensor
        return False
    values = [used.meta["val"] for used in node.all_input_nodes]
    if len({value.dtype for value in values if isinstance(value, Tensor)}) > 1:  # the value would be of the wider type
        return False
    node.target, value = WRITES[node.target], node
    for view in views:
        whole = view.args[0]
        assert isinstance(whole, fx.Node)
        with node.graph.inserting_after(value):
            value = node.graph.call_function(aten.slice_scatter.default, (whole, value, *view.args[1:]))
        value.meta = dict(whole.meta)
    base.replace_all_uses_with(value, delete_user_cb=later.__contains__)
    return True


def _seen_later(tensor: fx.Node, node: fx.Node) -> bool:
    """Whether what was cut out of a tensor before a node is read behind it, where it would show what was written."""
    views = [user for user in tensor.users if user < node and _is_view(user)]
    return any(any(user > node for user in view.users) or _seen_later(view, node) for view in views)


EXCHANGES: dict[object, Callable[[fx.Node], bool]] = {
    aten.adaptive_avg_pool2d.default: _pooled,
    aten.batch_norm.default: _normalised,
    aten.dropout_.default: _kept,
    aten.swapaxes.default: _renamed,
    aten.swapdims.default: _renamed,
}
"""What to do with another operator that the exporter does not take; False where it cannot be done."""


def _is_view(node: fx.Node) -> bool:
    """Whether its value may be a part of an operand, or the whole."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    returns = node.target._schema.returns  # noqa: SLF001 - the only way to ask
    return node.target in IDENTITIES or any(value.alias_info is not None for value in returns)


def _writes(target: object) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable  # noqa: SLF001
