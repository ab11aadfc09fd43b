"""Captured programs that the ONNX exporter need not decompose.

The exporter decomposes every program, which traces it once more: more than half of the time of an export. In most
networks nothing has to be decomposed but what writes into a tensor, as `x.relu_()`, and pooling to a single position;
for these other operators are put in place here.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

from subprune_fx.frontends.fx_writes import valued, writes

aten = torch.ops.aten

KNOWN_STATISTICS = aten._native_batch_norm_legit_no_training.default  # noqa: SLF001 - the name that the exporter knows


class Ready(ExportedProgram):
    """A program that is decomposed only where it has to be."""

    def run_decompositions(
        self, decomp_table: dict[OpOverload, Callable[..., Any]] | None = None, **options: Any
    ) -> ExportedProgram:
        """The program without the operators in a table; itself where replacing some of them (`EXCHANGES`) is enough."""
        if decomp_table is not None and _exchanged(self.graph, decomp_table):
            return self
        found: ExportedProgram = super().run_decompositions(decomp_table, **options)
        return found


def ready(program: ExportedProgram) -> ExportedProgram:
    """The program as one that is decomposed only where it has to be; see `copied`."""
    return copied(program, Ready)


def copied(program: ExportedProgram, kind: type[ExportedProgram] = ExportedProgram) -> ExportedProgram:
    """The same program as another class, with a graph of its own and the weights of the other."""
    return kind(
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
    """Replace operators by `EXCHANGES`; whether nothing is left that writes into a tensor or is in the table."""
    if not all(valued(node) for node in _calls(graph) if writes(node.target)):
        return False
    for node in _calls(graph):
        exchange = EXCHANGES.get(node.target)
        if exchange is not None and not exchange(node):
            return False
    targets = [node.target for node in _calls(graph)]
    return not any(isinstance(target, HigherOrderOperator) or target in table for target in targets)


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


def _cast(node: fx.Node) -> bool:
    """to(x, dtype) -> the operator that is one of a graph's own."""
    tensor, dtype, *rest = node.args
    if rest or node.kwargs:
        return False
    node.target, node.args, node.kwargs = aten._to_copy.default, (tensor,), {"dtype": dtype}  # noqa: SLF001
    return True


def _parted(node: fx.Node) -> bool:
    """tensor_split(x, [a, b], d)[1] -> x[a:b] along d."""
    tensor, places, *rest = node.args
    if not isinstance(places, (tuple, list)) or any(user.target is not operator.getitem for user in node.users):
        return False
    bounds = [0, *places, sys.maxsize]
    for user in list(node.users):
        part = user.args[1]
        assert isinstance(part, int)
        user.target, user.args = aten.slice.Tensor, (tensor, *(rest or [0]), bounds[part], bounds[part + 1])
    node.graph.erase_node(node)
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


EXCHANGES: dict[object, Callable[[fx.Node], bool]] = {
    aten.adaptive_avg_pool2d.default: _pooled,
    aten.batch_norm.default: _normalised,
    aten.swapaxes.default: _renamed,
    aten.swapdims.default: _renamed,
    aten.tensor_split.indices: _parted,
    aten.to.dtype: _cast,
}
"""What to do with another operator that the exporter does not take; False where it cannot be done."""
