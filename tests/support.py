"""What tests of whole networks share: pruning without calibration, and the full-size network it must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.passes.masked import masked
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch
from subprune_fx.plan import Decision, Plan


def halved(network: FxNetwork, seed: int = 0) -> tuple[Plan, fx.GraphModule]:
    """A plan in which every group keeps a random half of its units, and what it makes of the network."""
    rng, channels = np.random.default_rng(seed), network.channels
    kept = [np.sort(rng.permutation(group.units.size)[: max(1, group.units.size // 2)]) for group in channels.groups]
    alive = np.ones(channels.prunable.size, dtype=bool)
    for group, chosen in zip(channels.groups, kept, strict=True):
        alive[group.units] = False
        alive[group.units[chosen]] = True
    scratch = Scratch(network)
    scratch.shrink(alive)
    decisions = tuple(
        Decision(group.name, group.units.size, tuple(chosen.tolist()), 0.0)
        for group, chosen in zip(channels.groups, kept, strict=True)
    )
    plan = scratch.plan(decisions)
    return plan, apply(plan, network.graph_module)


def parameters(module: torch.nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in module.parameters())


def difference(left: Any, right: Any) -> float:
    """Largest difference of the tensors of two outputs as a fraction of the second's largest value."""
    first, second = pytree.tree_leaves(left), pytree.tree_leaves(right)  # an interpreter makes fx's own lists of lists
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert a.shape == b.shape
        scale = float(b.detach().abs().max().clamp(min=1e-12)) if b.numel() else 1.0
        worst = max(worst, float((a - b).detach().abs().max()) / scale if b.numel() else 0.0)
    return worst


def against_masked(network: FxNetwork, plan: Plan, small: fx.GraphModule, *inputs: Any) -> float:
    """How far a pruned network is from the masked and reweighted original, see `difference`."""
    with torch.no_grad():
        return difference(small(*inputs), masked(network, plan).run(*inputs))
