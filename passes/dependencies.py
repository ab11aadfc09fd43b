"""Trace a module and build its dependency graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.fx_shuffles import freed
from subprune_fx.frontends.tracing import traces
from subprune_fx.graph.channels import Frozen


def analyse(module: nn.Module, example: Inputs) -> FxNetwork:
    """The traced network and its channel groups.

    Args:
        module: Any module, unchanged by this.
        example: Input it accepts, first dimension = sample; two samples are enough.

    Raises:
        SubpruneError: If it cannot be traced, or has nothing to prune.
    """
    network = clearest(module, example)
    if not network.channels.groups:
        reasons: dict[str, str] = {}
        for item in network.channels.frozen:
            reasons.setdefault(item.reason, f"{item.name}: {item.reason}")
        why = "; ".join(list(reasons.values())[:3]) or "no layer reads another layer's channels"
        raise SubpruneError(
            f"nothing to prune ({why})",
            where=type(module).__name__,
            remedy="only channels between two layers can go; --explain lists what stays and why",
        )
    return network


def restrict(network: FxNetwork, only: Sequence[str], skip: Sequence[str]) -> FxNetwork:
    """The same network with fewer groups to prune.

    Args:
        network: The analysed network.
        only: Patterns (`fnmatch`) of group names; if there are any, a group has to match one.
        skip: Patterns of groups to leave alone.

    Raises:
        SubpruneError: If a pattern matches no group, or no group is left.
    """
    groups = network.channels.groups
    check_patterns((*only, *skip), [group.name for group in groups])

    def wanted(name: str) -> bool:
        chosen = not only or any(fnmatchcase(name, pattern) for pattern in only)
        return chosen and not any(fnmatchcase(name, pattern) for pattern in skip)

    left = {group.name: "you asked to leave it alone" for group in groups if not wanted(group.name)}
    if len(left) == len(groups):
        raise SubpruneError("nothing to prune: every prunable layer is excluded", remedy="exclude fewer")
    return narrowed(network, left)


def check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuse patterns (`fnmatch`) that match none of the prunable layers `names`.

    Raises:
        SubpruneError: One does not.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise SubpruneError(f"no prunable layer is called {pattern!r}", remedy=f"there are {known}")


def narrowed(network: FxNetwork, reasons: Mapping[str, str]) -> FxNetwork:
    """The same network, some groups (by name) frozen for the reasons given."""
    channels = network.channels
    kept = tuple(group for group in channels.groups if group.name not in reasons)
    left = tuple(
        Frozen(group.name, len(group.units), reasons[group.name]) for group in channels.groups if group.name in reasons
    )
    prunable = np.zeros_like(channels.prunable)
    for group in kept:
        prunable[group.units] = True
    narrower = dataclasses.replace(channels, groups=kept, frozen=(*channels.frozen, *left), prunable=prunable)
    return dataclasses.replace(network, channels=narrower)


def clearest(module: nn.Module, example: Inputs, *, undefined: bool = False) -> FxNetwork:
    """The first graph in which every op is known, else the one with the fewest unknown ops.

    torch.export knows weights that fx sees computed from the sizes of activations (`k.repeat(x.shape[1], 1, 1, 1)`).

    Args:
        module: See `analyse`.
        example: See `analyse`.
        undefined: Whether its outputs may be NaN for the example.

    Raises:
        SubpruneError: If it cannot be traced.
    """
    best: FxNetwork | None = None
    for graph in traces(module, example, undefined=undefined):
        found = freed(describe(graph, example), example)
        if best is None or len(found.channels.unknown) < len(best.channels.unknown):
            best = found
        if not best.channels.unknown:
            break
    assert best is not None
    return best
