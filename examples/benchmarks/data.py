"""MNIST and CIFAR-10 for the benchmarks: from a local folder, or through torchvision's download.

The folder (`--data` or the variable SUBPRUNE_DATA) may hold `mnist/*-ubyte.gz` (idx files) and
`cifar10-jpeg.zip` (JPEG files, `train/<class>/NNNN.jpg` and `test/...`). What it lacks, torchvision fetches; its
CIFAR-10 is not the JPEG copy, and gives other figures. For ResNet56 and VGG11 the folder also has to hold `networks.py`
(with `ResNet56` and `vgg11`), `weights/resnet56_cifar10.pt` and `weights/vgg11_cifar10.pt`, which are not part of this
project.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel that the networks were trained with, pixels in 0 to 1."""

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CIFAR10_ZIP = "cifar10-jpeg.zip"

data_option = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="SUBPRUNE_DATA",
    help="Folder with data sets and networks (default: $SUBPRUNE_DATA; without it, torchvision downloads).",
)


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set, decoded.

    Attributes:
        train: uint8, (samples, channels, height, width).
        train_labels: int64, (samples,).
        test: As `train`.
        test_labels: As `train_labels`.
    """

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load_images(name: str, folder: Path | None) -> Images:
    """Load a data set.

    Args:
        name: A key of `STATISTICS`.
        folder: Where to look first; None: download (or find an earlier download).
    """
    marker, local, fetch = SOURCES[name]
    if folder is not None and (folder / marker).exists():
        return local(folder / marker)
    return fetch()


def normalise(images: NDArray[np.uint8], name: str) -> Tensor:
    """float32, as the networks for data set `name` take it."""
    mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in STATISTICS[name])
    return (torch.from_numpy(images.astype(np.float32)) / 255 - mean) / deviation


def draw(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` different indices below `total`, ascending; the same for the same seed."""
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def cache_folder() -> Path:
    """Where decoded images and downloads are kept between runs; outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "subprune_fx"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _mnist_files(folder: Path) -> Images:
    train, train_labels, test, test_labels = (_idx(folder / name) for name in MNIST_FILES)
    return Images(train[:, None], train_labels.astype(np.int64), test[:, None], test_labels.astype(np.int64))


def _idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zero bytes, type 8, rank, a big-endian size per axis, the values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cifar10_zip(path: Path) -> Images:
    """Decoding 60,000 JPEG files takes a while: done once for each content of the archive."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".jpg")]
        digest = hashlib.sha256(repr([(member.filename, member.CRC) for member in members]).encode())
        cached = cache_folder() / f"cifar10-{digest.hexdigest()[:16]}.npz"
        if not cached.exists():
            train, train_labels = _decode(archive, members, "train")
            test, test_labels = _decode(archive, members, "test")
            partial = cached.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, train=train, train_labels=train_labels, test=test, test_labels=test_labels)
            partial.replace(cached)
    with np.load(cached) as found:
        return Images(**{field.name: found[field.name] for field in dataclasses.fields(Images)})


def _decode(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], part: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one part; classes in alphabetical order are the usual labels."""
    from PIL import Image  # noqa: PLC0415 - only this source of images needs it

    names = sorted(member.filename for member in members if member.filename.startswith(f"{part}/"))
    classes = sorted({name.split("/")[1] for name in names})
    pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    labels = [classes.index(name.split("/")[1]) for name in names]
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.array(labels, np.int64)


def _mnist_download() -> Images:
    from torchvision.datasets import MNIST  # noqa: PLC0415 - an optional dependency

    train, test = (MNIST(cache_folder(), train=flag, download=True) for flag in (True, False))
    return Images(train.data.numpy()[:, None], train.targets.numpy(), test.data.numpy()[:, None], test.targets.numpy())


def _cifar10_download() -> Images:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - an optional dependency

    train, test = (CIFAR10(cache_folder(), train=flag, download=True) for flag in (True, False))
    return Images(
        np.ascontiguousarray(train.data.transpose(0, 3, 1, 2)),
        np.array(train.targets, np.int64),
        np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)),
        np.array(test.targets, np.int64),
    )


SOURCES: dict[str, tuple[str, Callable[[Path], Images], Callable[[], Images]]] = {
    "mnist": ("mnist", _mnist_files, _mnist_download),
    "cifar10": (CIFAR10_ZIP, _cifar10_zip, _cifar10_download),
}
"""By name: what to look for in the folder, how to read it, how to get it elsewhere."""
