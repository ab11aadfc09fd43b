"""Which sizes in an fx graph depend on the number of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from subprune_fx.bundle import Inputs, joined


def batch_sizes(graph_module: fx.GraphModule, example: Inputs) -> frozenset[fx.Node]:
    """Nodes whose value is a number that is another one for another number of samples.

    Args:
        graph_module: The network.
        example: An input, first dimension = sample.

    Returns:
        The nodes; none where the network accepts one number of samples only.
    """
    recorders = [_Numbers(graph_module) for _ in range(2)]
    try:
        with torch.no_grad():
            for recorder, batch in zip(recorders, (example, joined([example, example[:1]])), strict=True):
                recorder.run(batch)
    except Exception:  # noqa: BLE001 - a fixed batch size may show in any way
        return frozenset()
    first, second = (recorder.numbers for recorder in recorders)
    return frozenset(node for node, number in first.items() if second[node] != number)


class _Numbers(fx.Interpreter):
    """Notes the value of every node that is a number."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.numbers: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, (int, torch.Size)):
            self.numbers[n] = value
        return value
