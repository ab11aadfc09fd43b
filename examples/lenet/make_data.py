"""Make `calibration.npz` and `evaluation.npz` from MNIST.

    python examples/lenet/make_data.py [--data FOLDER]

512 training digits without their labels, and 500 test digits with them, drawn with a fixed seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # where data.py is

from data import data_option, draw, load_images, normalise

HERE = Path(__file__).parent
SEED = 0


@click.command()
@data_option
def main(data: Path | None) -> None:
    """Write the two files beside this script."""
    digits = load_images("mnist", data)
    chosen = draw(len(digits.train), 512, SEED)
    x = normalise(digits.train[chosen], "mnist").numpy()
    np.savez_compressed(HERE / "calibration.npz", x=x)
    chosen = draw(len(digits.test), 500, SEED)
    x = normalise(digits.test[chosen], "mnist").numpy()
    np.savez_compressed(HERE / "evaluation.npz", x=x, y=digits.test_labels[chosen])


if __name__ == "__main__":
    main()
