"""The whole compilation as one pass of `torch.fx.passes.infra.pass_manager.PassManager`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from subprune_fx.api import prune
from subprune_fx.plan import Plan
from subprune_fx.report import Report


class PrunePass(PassBase):
    """graph module -> smaller graph module.

    Attributes:
        plan: What the last call decided; None before the first.
        report: What the last call did; None before the first.
    """

    def __init__(self, calibration: Tensor | NDArray[np.float32], *, ratio: float, **options: Any) -> None:
        """Remember what `subprune_fx.prune` is to be told.

        Args:
            calibration: Inputs, (samples, ...).
            ratio: Parameters before over after.
            options: Further keywords of `subprune_fx.prune`.
        """
        super().__init__()
        self._calibration = calibration
        self._options = {"ratio": ratio, **options}
        self.plan: Plan | None = None
        self.report: Report | None = None

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Prune a copy of `graph_module`.

        Raises:
            SubpruneError: As `subprune_fx.prune`.
        """
        smaller, self.plan, self.report = prune(graph_module, self._calibration, **self._options)
        return PassResult(smaller, modified=True)
