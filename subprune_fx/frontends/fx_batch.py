"""Which sizes in an fx graph depend on the number of samples: those that are other ones for one sample more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from subprune_fx.bundle import Inputs, one_more

NUMBERS = "subprune_fx.numbers"
"""Where a graph module keeps what `Numbers` have found until it is described, with how many samples that was for."""


class Numbers(fx.Interpreter):
    """Notes the value of every node that is a number, by the node's name."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run it, and look at its value."""
        value = super().run_node(n)
        if isinstance(value, (int, torch.Size)):
            self.found[n.name] = value
        return value


def numbers_of_more(graph_module: fx.GraphModule, example: Inputs) -> Mapping[str, Any]:
    """Numbers that a graph computes for `one_more`, by node; none where it accepts one number of samples only.

    What the tracer has noted there is used up: it may not be true of what becomes of the graph.
    """
    samples, known = graph_module.meta.pop(NUMBERS, (0, {}))
    if samples == len(example) + 1:
        found: Mapping[str, Any] = known
        return found
    recorder = Numbers(graph_module)
    try:
        with torch.no_grad():
            recorder.run(one_more(example))
    except Exception:  # noqa: BLE001 - a fixed batch size may show in any way
        return {}
    return recorder.found
