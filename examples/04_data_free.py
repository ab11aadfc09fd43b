"""Prune without data, on made-up pictures; for a network with BatchNorm they are also moved to its statistics.

python examples/04_data_free.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lenet.lenet import LeNet

import subprune_fx

FOLDER = Path(__file__).parent / "lenet"


def main() -> None:
    """Halve the shipped LeNet on made-up digits and on real ones, and compare."""
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    held_out = np.load(FOLDER / "evaluation.npz")
    evaluation = held_out["x"], held_out["y"]  # only to show what it cost; decides nothing

    made_up = subprune_fx.synthetic_inputs(model.eval(), (1, 28, 28))
    real = np.load(FOLDER / "calibration.npz")["x"]
    for name, inputs in (("made-up", made_up), ("real", real)):
        report = subprune_fx.prune(model, inputs, ratio=2, evaluation=evaluation).report
        print(f"{name} inputs: accuracy {report.accuracy_before:.1%} -> {report.accuracy_after:.1%}")


if __name__ == "__main__":
    main()
