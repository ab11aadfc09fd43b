"""Trace a module and build its dependency graph."""

from __future__ import annotations

from torch import Tensor, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.tracing import trace


def analyse(module: nn.Module, example: Tensor) -> FxNetwork:
    """The traced network and its channel groups.

    Args:
        module: Any module, unchanged by this.
        example: Input it accepts, first dimension = sample; two samples are enough.

    Raises:
        SubpruneError: If it cannot be traced, or has nothing to prune.
    """
    network = describe(trace(module, example), example)
    if not network.channels.groups:
        reasons = dict.fromkeys(f"{item.name}: {item.reason}" for item in network.channels.frozen)
        raise SubpruneError(
            "nothing to prune (" + ("; ".join(list(reasons)[:3]) or "no layer reads another layer's channels") + ")",
            where=type(module).__name__,
        )
    return network
