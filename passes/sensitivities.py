"""The largest share of a consumer's output that a unit makes up (Liebenwein et al. 2020, Definition 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.tensors import parameter
from subprune_fx.passes.forward import Forward
from subprune_fx.passes.segment import operand
from subprune_fx.team import ALONE, Team

ELEMENTS_AT_ONCE = 1 << 22
TINY = float(np.finfo(np.float32).eps)
"""A sum of contributions below this is nothing to have a share of."""


def sensitivities(network: FxNetwork, batches: Sequence[Inputs], team: Team = ALONE) -> dict[str, Tensor]:
    """By consumer, per column of its design matrix, max over rows and outputs of |b w| / sum of |b w| of one sign.

    Positive and negative inputs, and positive and negative weights, are four separate sums, as in the paper.

    Args:
        network: The analysed network.
        batches: Calibration inputs.
        team: Who has the others.

    Returns:
        (groups, d), float32, between 0 and 1.
    """
    recorder = _Recorder(network)
    with torch.no_grad():
        for batch in batches:
            recorder.run(batch)
    return {name: team.largest(found.cpu()) for name, found in recorder.found.items()}


def shares(columns: Tensor, weight: Tensor) -> Tensor:
    """For one sign of inputs and one of weights: max over rows r and outputs m of b_jr w_jm / sum_j b_jr w_jm.

    Args:
        columns: Absolute inputs, (d, rows).
        weight: Absolute weights, (d, m).

    Returns:
        (d,).
    """
    sums = weight.t() @ columns
    inverse = (1 / sums).masked_fill(sums <= TINY, 0)
    found = columns.new_zeros(len(columns))
    high = max(1, ELEMENTS_AT_ONCE // max(1, inverse.shape[0] * 128))
    for start in range(0, len(columns), high):
        part = slice(start, start + high)
        best = columns.new_zeros(len(columns[part]), inverse.shape[0])
        for left in range(0, columns.shape[1], 128):
            rows = slice(left, left + 128)
            torch.maximum(best, (columns[part, None, rows] * inverse[None, :, rows]).amax(2), out=best)
        found[part] = (best * weight[part]).amax(1)
    return found


class _Recorder(Forward):
    def __init__(self, network: FxNetwork) -> None:
        super().__init__(network)
        self.network = network
        self.consumers = set(network.channels.consumers)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.consumers:
            self._record(n.name, self.env[operand(n, self.network.channels.contractions[n.name].source)])
        return super().run_node(n)

    def _record(self, name: str, x: Tensor) -> None:
        reader = self.network.readers[name]
        weight = reader.matrix(parameter(self.network.graph_module, self.network.channels.contractions[name].weight))
        rows = []
        for matrix, columns in zip(weight, reader.columns(x), strict=True):
            signs = [part for part in (columns.clamp(min=0), (-columns).clamp(min=0)) if bool(part.any())]
            both = [shares(part, w) for part in signs for w in (matrix.clamp(min=0), (-matrix).clamp(min=0))]
            rows.append(torch.stack(both).amax(0) if both else columns.new_zeros(len(columns)))
        found = torch.stack(rows)
        self.found[name] = torch.maximum(self.found[name], found) if name in self.found else found
