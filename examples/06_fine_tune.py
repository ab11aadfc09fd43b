"""Fine-tune what comes out, in a training loop as any other, and put it back into your own class.

python examples/06_fine_tune.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lenet.lenet import LeNet
from torch import Tensor, nn

import subprune_fx

FOLDER = Path(__file__).parent / "lenet"
EPOCHS = 20


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of inputs whose class is right."""
    module.eval()
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def train(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Plain Adam on cross-entropy."""
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.chunk(torch.randperm(len(x)), len(x) // 64):
            loss = nn.functional.cross_entropy(module(x[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def main() -> None:
    """Prune the shipped LeNet to 1/32, train that, and rebuild it as a LeNet."""
    torch.manual_seed(0)
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    digits = torch.from_numpy(np.load(FOLDER / "calibration.npz")["x"])
    held_out = np.load(FOLDER / "evaluation.npz")
    x, y = torch.from_numpy(held_out["x"]), torch.from_numpy(held_out["y"]).long()

    small, plan, report = subprune_fx.prune(model.eval(), digits, ratio=32)
    with torch.no_grad():
        labels = model(digits).argmax(1)  # the original's own answers; yours come with your training set
    print(f"{report.achieved:.1f} times fewer parameters, accuracy {accuracy(small, x, y):.1%}")

    train(small, digits, labels)
    print(f"fine-tuned on {len(digits)} inputs, accuracy {accuracy(small, x, y):.1%}")

    own = subprune_fx.apply(plan, LeNet())  # your class with smaller layers
    own.load_state_dict(small.state_dict())
    print(f"as {type(own).__name__}, accuracy {accuracy(own, x, y):.1%}")


if __name__ == "__main__":
    main()
