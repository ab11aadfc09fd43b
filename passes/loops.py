"""Recurrent layers read their own states: where these stand, and what they are multiplied with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_recurrent import own_matrices, recurrent
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.graph.labels import Labels, vector
from subprune_fx.graph.step import leaves


@dataclasses.dataclass(frozen=True)
class Loop:
    """A recurrent layer.

    Attributes:
        node: Name of the call.
        labels: Of its states, direction after direction, (d,).
        matrices: By direction, the names of the matrix that they meet, (gates, units), and of the bias of that.
    """

    node: str
    labels: Labels
    matrices: tuple[tuple[str, str | None], ...]

    def whole(self, network: FxNetwork) -> Tensor:
        """What all states are multiplied with, (d, gates of all directions)."""
        parts = [parameter(network.graph_module, matrix).mT for matrix, _ in self.matrices]
        found: Tensor = torch.block_diag(*parts).cpu()  # type: ignore[no-untyped-call]
        return found


def loops(network: FxNetwork) -> list[Loop]:
    """Those whose matrices can be read, in the order of the graph."""
    nodes = [node for node in network.graph_module.graph.nodes if node.target is recurrent]
    found = [Loop(node.name, _states(network, node.name), tuple(own_matrices(node))) for node in nodes]
    return [loop for loop in found if loop.matrices]


def held(group: Group, network: FxNetwork, among: Iterable[Loop]) -> list[Loop]:
    """Of some loops those whose states a group holds."""
    return [loop for loop in among if np.isin(network.channels.unit[loop.labels], group.units).any()]


def _states(network: FxNetwork, name: str) -> Labels:
    return vector(leaves(network.channels.values[name])[0], -1)
