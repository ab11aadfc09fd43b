"""The loss of a network with some units of one group gone, on a batch drawn for the purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.tensors import parameter
from subprune_fx.numerics.readers import Reader
from subprune_fx.passes.outputs import loss
from subprune_fx.passes.segment import Segment, chains
from subprune_fx.passes.trials import patched

Draw = Callable[[torch.Generator], tuple[Inputs, Tensor]]
"""A batch of inputs and their labels."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A consumer of the group.

    Attributes:
        weight: Name of its weight.
        reader: Its geometry.
        unit: By column of its design matrix, position in the group or -1, (groups, d).
    """

    weight: str
    reader: Reader
    unit: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class GroupLosses:
    """See `selectors.Losses`: the network up to the group's first consumer is run once a batch, the rest per choice.

    Attributes:
        module: The network, original or pruned so far; unchanged by this.
        start: Name of the group's first consumer.
        readings: Its consumers.
        batch: Where batches come from.
    """

    module: fx.GraphModule
    start: str
    readings: tuple[Reading, ...]
    batch: Draw

    def draw(self, generator: torch.Generator) -> Callable[[Tensor, float], float]:
        """See `selectors.Losses`."""
        x, y = self.batch(generator)
        interpreter = fx.Interpreter(self.module)
        nodes = list(self.module.graph.nodes)
        position = next(i for i, node in enumerate(nodes) if node.name == self.start)
        known = chains(self.module.graph)
        matrices = [reading.reader.matrix(parameter(self.module, reading.weight)) for reading in self.readings]
        changing = [reading.weight for reading in self.readings]
        inputs = [node for node in nodes if node.op == "placeholder"]
        with torch.no_grad():
            environment = Segment(interpreter, nodes[:position], known)(dict.fromkeys(inputs, x))
            rest = Segment(interpreter, nodes[position:], known, changing)

        def measured(kept: Tensor, scale: float) -> float:
            by_unit = torch.cat([kept * scale, torch.ones(1)])  # position -1: another group's column stays
            values = {}
            for reading, matrix in zip(self.readings, matrices, strict=True):
                columns = by_unit[torch.from_numpy(reading.unit)].to(matrix)
                old = parameter(self.module, reading.weight)
                values[reading.weight] = reading.reader.weight(matrix * columns[:, :, None], old)
            with torch.no_grad(), patched(self.module, values):
                return float(loss(rest(environment, rest.parameters())[nodes[-1]], y)) / len(y)

        return measured


def among(batches: Sequence[Inputs], labels: Sequence[Tensor]) -> Draw:
    """One of the given batches."""

    def draw(generator: torch.Generator) -> tuple[Inputs, Tensor]:
        chosen = int(torch.randint(len(batches), (1,), generator=generator))
        return batches[chosen], labels[chosen]

    return draw


def within(inputs: Inputs, labels: Tensor, size: int) -> Draw:
    """`size` different samples of a whole set."""

    def draw(generator: torch.Generator) -> tuple[Inputs, Tensor]:
        chosen = torch.randperm(len(inputs), generator=generator)[:size]
        return inputs[chosen], labels[chosen]

    return draw
