"""Prune an ONNX file whose training code is gone: in goes an .onnx, out comes the same file with smaller tensors.

python examples/05_prune_an_onnx.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from lenet.lenet import LeNet

from subprune_fx.cli.main import main as subprune_compile

FOLDER = Path(__file__).parent / "lenet"


def some_onnx_file(path: Path) -> None:
    """Write an ONNX file to work on; yours came from elsewhere."""
    model = LeNet()
    model.load_state_dict(torch.load(FOLDER / "lenet_mnist.pt", weights_only=True))
    free = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model.eval(), (torch.zeros(2, 1, 28, 28),), path, dynamic_shapes=free, external_data=False, verbose=False
    )


def accuracy(path: Path) -> float:
    """Share of the held-out digits that a file reads rightly; no PyTorch needed."""
    digits = np.load(FOLDER / "evaluation.npz")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: digits["x"]})
    return float((scores.argmax(1) == digits["y"]).mean())


def main() -> None:
    """Quarter a file as the command does, and run both."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large.onnx"), Path(folder, "small.onnx")
        some_onnx_file(large)
        calibration = str(FOLDER / "calibration.npz")
        failed = subprune_compile([str(large), "--ratio", "4", "--calib", calibration, "-o", str(small), "--quiet"])
        if failed:
            raise SystemExit(failed)
        for path in (large, small):
            print(f"{path.name}: {path.stat().st_size} bytes, accuracy {accuracy(path):.1%}")


if __name__ == "__main__":
    main()
