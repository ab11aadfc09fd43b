"""What tests of whole networks share: pruning without calibration, and the full-size network it must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.proof import difference
from subprune_fx.passes.sweep import Sweep
from subprune_fx.plan import Plan


def parameters(module: torch.nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in module.parameters())


def against_masked(network: FxNetwork, plan: Plan, small: fx.GraphModule, *inputs: Any) -> float:
    """How far a pruned network is from the masked and reweighted original, see `difference`."""
    with torch.no_grad():
        return difference(small(*inputs), Masked(network, plan).run(*inputs))


class Joined(nn.Module):
    """A concat of two layers' channels and of the image's, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([self.a(x), x, self.b(x)], 1))
        return out


def sweep_of(compiler: Compiler, keep: dict[str, int], *, late: bool) -> Sweep:
    """A sweep with the given numbers of units; `late`: groups of one consumer wait until it is reached."""
    return Sweep(
        compiler.network,
        keep,
        compiler._rankings,
        variant=compiler.options.variant,
        settings=compiler.options.settings,
        reweight=True,
        choose=compiler._choose if late else None,
    )
