"""What tests of whole networks share: pruning without calibration, and the full-size network it must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.passes.masked import masked
from subprune_fx.passes.proof import difference
from subprune_fx.plan import Plan


def parameters(module: torch.nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in module.parameters())


def against_masked(network: FxNetwork, plan: Plan, small: fx.GraphModule, *inputs: Any) -> float:
    """How far a pruned network is from the masked and reweighted original, see `difference`."""
    with torch.no_grad():
        return difference(small(*inputs), masked(network, plan).run(*inputs))
