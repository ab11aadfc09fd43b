"""Graphs of torch.export that can be trained: their mode is an argument of their nodes, not a flag of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
# Ops whose behaviour depends on the mode, and the position of the argument that says so.
_MODES: dict[Any, int] = {
    _aten.batch_norm.default: 5,
    _aten.dropout.default: 2,
    _aten.feature_dropout.default: 2,
    _aten.alpha_dropout.default: 2,
    _aten.rrelu.default: 3,
}


class ExportedModule(fx.GraphModule):
    """A graph module of ATen ops with `train()` and `eval()`, which torch.export's own refuse."""

    def train(self, mode: bool = True) -> ExportedModule:
        """See `nn.Module.train`; BatchNorm and dropout follow."""
        for part in self.modules():
            part.training = mode
        for node, position in _switches(self.graph):
            node.args = (*node.args[:position], mode, *node.args[position + 1 :])
        self.recompile()
        return self

    def eval(self) -> ExportedModule:
        """See `nn.Module.eval`."""
        return self.train(mode=False)


def _switches(graph: fx.Graph) -> Iterator[tuple[fx.Node, int]]:
    for node in graph.nodes:
        position = _MODES.get(node.target)
        if position is not None and len(node.args) > position:
            yield node, position
