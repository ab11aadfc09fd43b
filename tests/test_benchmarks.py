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
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import subprune_fx

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
    jobs, tables = load("jobs"), load("tables")
    rows = [
        jobs.Row(jobs.Job("lenet_mnist", "asyminchange", 2.0, seed), 98.06, accuracy, 2.01, 3.0, 3.4)
        for seed, accuracy in ((42, 97.0), (43, 98.0))
    ]
    lost = jobs.Row(jobs.Job("lenet_mnist", "onnxsim", 2.0, 42), 98.06, *[float("nan")] * 4)
    lines = tables.markdown([*rows, lost]).splitlines()
    assert "Original: 98.06 % here, 97.75 % in the paper." in lines[2]
    assert lines[6] == "| AsymInChange | ✓ |  | 97.5 ± 0.7 (97.4), 3.0x (3.1), 3 s |"
    assert lines[7] == "| onnxsim, L2 | ✓ |  | out of reach |"
    assert "Order by mean over the ratios, reweighted: AsymInChange 97.5." in lines
    assert "In the paper: AsymInChange 97.4." in lines


def test_the_papers_tables_are_complete(load: Load) -> None:
    published = load("methods").published()
    assert len(published) == 3 * 9 * 2 * 2 * 5
    first = published["lenet_mnist", "asyminchange", True, False, 32]
    assert (first.accuracy, first.speedup, first.seconds) == (83.5, 4.0, 2)
    last = published["vgg11_cifar10", "layergreedyfs-fd", False, False, 32]
    assert (last.accuracy, last.speedup, last.seconds) == (15.5, 11.5, 7149)


def test_every_method_says_what_its_selector_needs(load: Load) -> None:
    """Each row's options are real ones, and are accepted for a network of the size of a toy."""
    methods = load("methods")
    x = torch.rand(16, 1, 6, 6)
    y = torch.arange(16) % 3
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 3))
    for method in methods.METHODS.values():
        if not method.rival:
            more: dict[str, Any] = {"labels": y, "verification": (x, y)} if method.paper else {}
            more |= {"training": (x, y)} if method.training else {}
            (found,) = subprune_fx.prune_each(net.eval(), x, ratios=(2,), **method.options, **more)
            assert found.report.achieved >= 2


def test_two_layers_reach_the_ratio_of_equal_fractions(load: Load) -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    (half,) = load("runs").ratios_at(net, ("0",), (0.5,), (2, 4))
    total, less = (4 + 1) * 10 + (10 + 1) * 8 + (8 + 1) * 2, (4 + 1) * 5 + (5 + 1) * 8 + (8 + 1) * 2
    assert half == pytest.approx(total / less, abs=1e-4)


def test_fine_tuning_learns_and_leaves_its_start_alone(load: Load) -> None:
    tuning = load("tuning")
    images = np.random.default_rng(0).integers(0, 256, (130, 1, 6, 6), dtype=np.uint8)
    labels = torch.from_numpy((images.mean((1, 2, 3)) > 127).astype(np.int64))
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)).eval()
    before = [parameter.clone() for parameter in net.parameters()]
    x = load("data").normalise(images, "mnist")

    def loss(module: nn.Module) -> float:
        return float(nn.functional.cross_entropy(module(x).detach(), labels))

    tuned = [tuning.tune(net, images, labels, "mnist", seed) for seed in (0, 0, 1)]
    assert loss(tuned[0]) < loss(net)
    assert loss(tuned[0]) == loss(tuned[1]) != loss(tuned[2])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not tuned[0].training


def test_augmentation_flips_and_moves(load: Load) -> None:
    x = torch.arange(1, 145.0).reshape(1, 1, 12, 12).repeat(200, 1, 1, 1)
    moved = load("tuning").augment(x, 4, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    centre = moved[:, 0, 5:7, 5:7]  # never padding
    straight = (centre[:, 0, 1] - centre[:, 0, 0] == 1).sum()
    assert 70 < straight < 130
    assert len(torch.unique(centre.flatten(1), dim=0)) > 60
    assert torch.equal(load("tuning").augment(x, 0, torch.Generator()), x)


def test_batchnorm_recalibration_takes_the_statistics_of_the_inputs(load: Load) -> None:
    rivals = load("rivals")
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)).eval()
    x = 5 + 2 * torch.randn(128, 1, 4, 4)
    rivals.recalibrate(net, x)
    hidden = net[0](x).detach()
    assert isinstance(net[1], nn.BatchNorm2d)
    torch.testing.assert_close(net[1].running_mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, hidden.var((0, 2, 3)))
    assert (net[1].momentum, net[1].training) == (0.1, False)


def test_the_least_fraction_is_found(load: Load) -> None:
    rivals = load("rivals")
    assert rivals.least(lambda f: f, lambda f: round(1000 * (1 - f)), 400) == pytest.approx(0.6, abs=1e-3)
    assert rivals.least(lambda f: f, lambda f: 1000, 400) > 0.99


def test_figures_are_drawn_from_what_there_is(load: Load, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    jobs, figures = load("jobs"), load("figures")
    rows = [
        jobs.Row(jobs.Job("lenet_mnist", method, ratio, seed), 98.0, 90.0 - ratio, ratio, 2.0, 1.0)
        for method in ("ours", "asyminchange")
        for ratio in (2.0, 4.0)
        for seed in (42, 43)
    ]
    two = jobs.Row(
        jobs.Job("vgg11_cifar10", "ours", 1.2, 42, budget="uniform", layers=("0", "22")), 85.0, 80.0, 1, 1, 1
    )
    written = figures.draw_all([*rows, two], tmp_path)
    assert [path.name for path in written] == ["figure1.png", "figure5.png"]
    assert all(path.stat().st_size > 5000 for path in written)


def test_finished_runs_are_not_repeated(repository: Path, folder: Path) -> None:
    script = repository / "examples" / "benchmarks" / "paper.py"
    arguments = ["--nets", "lenet_mnist", "--ratios", "2", "--samples", "32", "--methods", "ours,actgrad"]

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

    assert run("42").count("seed 42") == 3  # actgrad with and without reweighting
    with (folder / "out" / "paper.jsonl").open("a") as journal:
        journal.write('{"job": {"net": "lenet_m')  # as an interruption leaves it
    again = run("42-43")
    assert "seed 42" not in again
    assert again.count("seed 43") == 3
    assert "seed" not in run("42-43")
    assert (folder / "out" / "paper.csv").read_text().count("lenet_mnist") == 6


def test_speed_is_measured_once_and_tabulated(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    speed = load("speed")
    calls: list[str] = []

    def counted(name: str, seconds: float) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            calls.append(name)
            return {"seconds": seconds}

        return run

    made = {f"curve units={n}": counted("curve", 1e-6 * n**2) for n in (128, 256, 512)}
    monkeypatch.setattr(speed, "tasks", lambda _: {"help": counted("help", 0.5), **made})
    runner = CliRunner()
    for expected in (2, 2, 8):  # two of one task, which are known the second time, and two of the three others
        only = ["--only", "help"] if expected == 2 else []
        done = runner.invoke(speed.main, ["--results", str(tmp_path), "--repeat", "2", *only])
        assert done.exit_code == 0, done.output
        assert len(calls) == expected
    assert "help: seconds 0.500" in done.output
    assert "exponent 2.00" in done.output
    assert (tmp_path / "speed.png").stat().st_size > 0


def test_speed_lists_every_task(load: Load) -> None:
    names = load("speed_tasks").tasks(None)
    assert {"help", "import", "greedy d=4608 r=9 m=512", "greedy d=4096 r=1 m=4096", "curve depth=32"} <= names.keys()
    assert {"command resnet56_cifar10 c=4", "forward vgg11_cifar10", "torch-pruning lenet_mnist c=4"} <= names.keys()


def test_single_layers_are_timed(load: Load) -> None:
    layers = load("speed_layers")
    assert layers.greedy_alone(16, 4, 8)["seconds"] > 0
    block = layers.gated(8, 12, samples=4, tokens=4)
    assert min(block["seconds"], block["forward"], block["MB"]) > 0


def test_the_picture_is_drawn_from_the_readme(load: Load, repository: Path) -> None:
    chart = load("chart")
    text = (repository / "README.md").read_text(encoding="utf-8")
    tables = {title: chart.table(text, before) for title, before in chart.PANELS.items()}
    assert all(set(table["subprune_fx"]) >= {2, 4, 8} for table in tables.values())
    assert set(chart.LINES) <= {name for table in tables.values() for name in table}
    assert tables["VGG11, CIFAR-10"]["AsymInChange"][32] == 38.2  # not the paper's, in brackets behind it


def test_a_shipped_file_is_compared_on_inputs_kept_back(load: Load, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    shipped = load("shipped")
    last = nn.Linear(16, 3)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), last).eval()
    with torch.no_grad():
        last.weight[:, ::2] = 0
    subprune_fx.save(torch.fx.symbolic_trace(net), tmp_path / "net.onnx", inputs=np.ones((2, 4), np.float32))
    seen = []

    def make(seed: int, count: int, _work: Path) -> NDArray[np.float32]:
        seen.append(seed)
        return np.random.default_rng(seed).standard_normal((count, 4), dtype=np.float32)

    found = shipped.run(shipped.Shipped("none==1", "net.onnx", make, 64, 1), 1.5, tmp_path)
    assert seen == [0, 1]
    assert found["change"] < 1e-3  # what was dropped was not read
    assert found["same class"] == 1
    assert found["ratio"] > 1
    assert shipped.run(shipped.Shipped("none==1", "net.onnx", make, 64), 99, tmp_path) == {
        "file": "net.onnx",
        "exit code": 2,
    }
    assert shipped._ends(bytes(range(70))).tolist()[:71] == [*range(70), 256]


@pytest.mark.parametrize(("name", "group"), [("three lstm layers", "steps.weight_ih_l2"), ("gru cells", "cell")])
def test_recurrent_networks_are_trained_pruned_and_judged(load: Load, folder: Path, name: str, group: str) -> None:
    pytest.importorskip("torchvision")
    recurrent = load("recurrent")
    arguments = ["--data", str(folder), "--work", str(folder), "--only", name, "--ratios", "1.5"]
    result = CliRunner().invoke(recurrent.main, arguments, catch_exceptions=False)
    first, second = result.output.splitlines()
    assert first.startswith(f"{name}: ")
    assert second.startswith("  1.5")
    assert group in second


def test_mel_filters_overlap_and_rise(load: Load) -> None:
    pytest.importorskip("torchvision")
    filters = load("recurrent").bands()
    assert filters.shape == (40, 201)
    assert bool((filters >= 0).all())
    assert bool((filters.argmax(1).diff() > 0).all())
    assert bool((filters.sum(0)[2:198] > 0).all())
