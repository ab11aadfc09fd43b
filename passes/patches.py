"""Consumers that keep their weights when some of their channels are gone, or have them scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.passes.problems import column_units
from subprune_fx.selectors import Ranking

Patches = Callable[[Group, NDArray[np.bool_]], dict[str, Tensor]]
"""From a group and which units are alive to new full-size parameters of the group's consumers."""


def unit_factors(group: Group, ranking: Ranking, kept: int, units: int) -> NDArray[np.float64]:
    """By unit of the network, what its outgoing weights are multiplied by when a group keeps its first `kept`."""
    found = np.ones(units)
    found[group.units] = 0.0
    chosen = group.units[ranking.order[:kept].numpy()]
    found[chosen] = 1.0 if ranking.factors is None else ranking.factors(kept).numpy()
    return found


def scaled(network: FxNetwork, consumer: Consumer, weight: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """A consumer's full-size weight with the columns of each unit multiplied by its factor."""
    reader = network.readers[consumer.name]
    units = column_units(consumer, reader.taps, network.channels.unit)
    matrix = reader.matrix(weight) * torch.from_numpy(factor[units]).to(weight)[:, :, None]
    return reader.weight(matrix, weight)


def keeping(network: FxNetwork, rankings: Mapping[str, Ranking]) -> Patches:
    """Patches without reweighting: dropped columns zero, the others as the ranking says."""

    def patches(group: Group, alive: NDArray[np.bool_]) -> dict[str, Tensor]:
        kept = int(alive[group.units].sum())
        factor = unit_factors(group, rankings[group.name], kept, alive.size)
        found = {}
        for name in group.consumers:
            consumer = network.channels.contractions[name]
            mine = factor if consumer.weight not in network.channels.shared else (factor > 0).astype(np.float64)
            found[consumer.weight] = scaled(network, consumer, parameter(network.graph_module, consumer.weight), mine)
        return found

    return patches
