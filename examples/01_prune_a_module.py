"""Prune a module in memory, look at what happened, and use the smaller network.

python examples/01_prune_a_module.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lenet.lenet import LeNet

import subprune_fx

FOLDER = Path(__file__).parent / "lenet"


def main() -> None:
    """Prune the shipped LeNet to an eighth and print what is left of it."""
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    calibration = np.load(FOLDER / "calibration.npz")["x"]
    held_out = np.load(FOLDER / "evaluation.npz")

    small, _, report = subprune_fx.prune(model.eval(), calibration, ratio=8, evaluation=(held_out["x"], held_out["y"]))

    for group in report.groups:
        print(f"{group.name}: {group.kept} of {group.channels} kept, relative error {group.error:.3f}")
    before, after = report.before.parameters, report.after.parameters
    print(f"{before} -> {after} parameters ({report.achieved:.2f} times fewer)")
    print(f"accuracy {report.accuracy_before:.1%} -> {report.accuracy_after:.1%}")

    with torch.no_grad():
        scores = small(torch.from_numpy(held_out["x"][:8]))
    print(f"digits {held_out['y'][:8].tolist()} are read as {scores.argmax(1).tolist()}")


if __name__ == "__main__":
    main()
