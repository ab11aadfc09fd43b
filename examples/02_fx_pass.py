"""Pruning as one pass among others in torch.fx's own pass manager.

python examples/02_fx_pass.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lenet.lenet import LeNet
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

from subprune_fx.passes import PrunePass

FOLDER = Path(__file__).parent / "lenet"


class CountParameters(PassBase):
    """Prints the size of the network that passes through; any pass of yours stands here."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Change nothing."""
        print(f"{sum(parameter.numel() for parameter in graph_module.parameters())} parameters")
        return PassResult(graph_module, modified=False)


def main() -> None:
    """Count, prune, count."""
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    calibration = np.load(FOLDER / "calibration.npz")["x"]

    manager = PassManager(passes=[CountParameters(), PrunePass(calibration, ratio=8), CountParameters()])
    result = manager(fx.symbolic_trace(model.eval()))
    print(result.graph_module)


if __name__ == "__main__":
    main()
