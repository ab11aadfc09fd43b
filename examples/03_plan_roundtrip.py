"""Decide once, apply anywhere: a plan that is saved, loaded, and applied to a fresh instance of your class.

python examples/03_plan_roundtrip.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from lenet.lenet import LeNet

import subprune_fx

FOLDER = Path(__file__).parent / "lenet"


def main() -> None:
    """Prune, save the plan and the weights, and rebuild the smaller LeNet from the two files."""
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    calibration = np.load(FOLDER / "calibration.npz")["x"]
    small, plan, _ = subprune_fx.prune(model.eval(), calibration, ratio=8)

    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder, "lenet.plan"))  # which channels stay, and the new weights; no pickle
        torch.save(small.state_dict(), Path(folder, "small.pt"))

        plan = subprune_fx.Plan.load(Path(folder, "lenet.plan"))
        rebuilt = subprune_fx.apply(plan, LeNet())  # your class, with smaller layers
        rebuilt.load_state_dict(torch.load(Path(folder, "small.pt"), weights_only=True))

    print(rebuilt)
    x = torch.from_numpy(calibration)
    with torch.no_grad():
        difference = (rebuilt.eval()(x) - small(x)).abs().max().item()
    print(f"largest difference to the pruned graph module: {difference:.1e}")


if __name__ == "__main__":
    main()
