"""Prune, then quantise: a float and an int8 ONNX file from one command, both run and compared.

python examples/07_int8.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from subprune_fx.cli.main import main as subprune_compile

FOLDER = Path(__file__).parent / "lenet"


def main() -> None:
    """Quarter the shipped LeNet, quantise it, and print what each stage weighs and is worth."""
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder, "small.onnx"), Path(folder, "report.json")
        network = [str(FOLDER / "lenet_mnist.pt"), "--arch", f"{FOLDER / 'lenet.py'}:LeNet"]
        data = ["--calib", str(FOLDER / "calibration.npz"), "--eval", str(FOLDER / "evaluation.npz")]
        wanted = ["--ratio", "4", "--quantize", "int8", "-o", str(output), "--json", str(report), "--quiet"]
        failed = subprune_compile([*network, *data, *wanted])
        if failed:
            raise SystemExit(failed)
        for stage in json.loads(report.read_text())["stages"]:
            print(f"{stage['name']}: {stage['bytes']} bytes, accuracy {stage['accuracy']:.1%}")


if __name__ == "__main__":
    main()
