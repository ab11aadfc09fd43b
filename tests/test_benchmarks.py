"""The benchmarks read both data sets right, resume, and tabulate; on a toy copy of each data set."""

from __future__ import annotations

import gzip
import importlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a benchmark's module as the scripts do, and forget it afterwards."""
    folder = repository / "examples" / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder: 100 training and 20 test images of each set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mnist").mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 20)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz", pixels)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip", "w") as archive:
        for part in ("test", "train"):
            for shade, name in ((250, "cat"), (5, "airplane")):
                archive.writestr(f"{part}/{name}/0000.jpg", jpeg(shade))
    return tmp_path


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def jpeg(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (red, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def test_mnist_keeps_its_axes(load: Load, folder: Path) -> None:
    images = load("data").load_images("mnist", folder)
    assert images.train.shape == (100, 1, 28, 28)
    expected = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(images.train[:, 0], expected)
    np.testing.assert_array_equal(images.test_labels, np.arange(20) % 10)


def test_cifar10_labels_are_alphabetical_and_channels_come_first(load: Load, folder: Path) -> None:
    data = load("data")
    for _ in range(2):  # decoded, then cached
        images = data.load_images("cifar10", folder)
        assert images.train.shape == (2, 3, 32, 32)
        assert images.train_labels.tolist() == [0, 1]
        # JPEG is lossy; a flat colour stays within a few steps
        np.testing.assert_allclose(images.train[:, 0].mean((1, 2)), [5, 250], atol=4)
        assert images.train[:, 1:].max() < 8
    assert len(list((folder / "cache" / "subprune_fx").iterdir())) == 1


def test_normalised_images_have_the_training_statistics(load: Load) -> None:
    x = load("data").normalise(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), "mnist")
    np.testing.assert_allclose(x.flatten(), [-0.1307 / 0.3081, (1 - 0.1307) / 0.3081], rtol=1e-6)


def test_draws_repeat_by_seed_and_have_no_duplicates(load: Load) -> None:
    draw = load("data").draw
    np.testing.assert_array_equal(draw(1000, 512, 42), draw(1000, 512, 42))
    assert len(set(draw(1000, 512, 42))) == 512
    assert set(draw(1000, 512, 42)) != set(draw(1000, 512, 43))


def test_tabulates_mean_and_deviation_beside_the_paper(load: Load) -> None:
    paper = load("paper")
    rows = [
        paper.Row(paper.Job("lenet_mnist", 2.0, seed, "asym", None, 512), 98.06, accuracy, 2.01, 3.0)
        for seed, accuracy in ((42, 97.0), (43, 98.0))
    ]
    lines = paper.markdown(rows).splitlines()
    assert lines[2] == "| lenet_mnist | 1 | 97.75 | 98.06 | | | | |"
    assert lines[3] == "| lenet_mnist | 2 | 97.4 | 97.5 ± 0.7 | 97.4 | 2.01 | 2 | 3.0 |"


def test_finished_runs_are_not_repeated(repository: Path, folder: Path) -> None:
    script = repository / "examples" / "benchmarks" / "paper.py"
    arguments = ["--nets", "lenet_mnist", "--ratios", "2", "--samples", "32"]

    def run(seeds: str) -> str:
        found = subprocess.run(
            [
                sys.executable,
                script,
                "--data",
                folder,
                "--results",
                folder / "out",
                *arguments,
                "--seeds",
                seeds,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stderr

    assert run("42").count("seed 42") == 1
    with (folder / "out" / "paper.jsonl").open("a") as journal:
        journal.write('{"job": {"net": "lenet_m')  # as an interruption leaves it
    again = run("42-43")
    assert "seed 42" not in again
    assert again.count("seed 43") == 1
    assert "seed" not in run("42-43")
    assert (folder / "out" / "paper.csv").read_text().count("lenet_mnist") == 2
