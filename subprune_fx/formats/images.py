"""Images as a network takes them: decoded, resized, cropped and normalised as torchvision does."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.layouts import channels_last

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""By a network's input channels."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
RESIZE_REMEDY = "pass --resize and --crop, such as --resize 256 --crop 224, or a --preset"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What becomes of an image, in this order.

    Attributes:
        resize: (n,): the shorter side becomes n; (height, width); None: left as it is.
        crop: (n,) or (height, width) around the middle; None: none.
        mean: Of each channel, of pixels in 0 to 1; empty: 0.
        std: Of each channel; empty: 1.
        interpolation: One of `INTERPOLATIONS`.
        last: Channels come last.
    """

    resize: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    last: bool = False

    def fitted(self, taken: InputSpec) -> Preparation:
        """With the layout that the network takes, and with its size where no other is asked for."""
        sample = (taken.accepts or ())[1:]
        last = channels_last(sample)
        sizes = sample[:2] if last else sample[1:]
        if self.resize or self.crop or len(sizes) != 2 or None in sizes:
            return dataclasses.replace(self, last=last)
        height, width = (int(size or 0) for size in sizes)
        square = (height,) if height == width else (height, width)
        return dataclasses.replace(self, resize=square, crop=(height, width), last=last)

    def channels(self, taken: InputSpec) -> int:
        """How many channels an image is given."""
        sample = (taken.accepts or ())[1:]
        stated = sample[2 if channels_last(sample) else 0] if len(sample) == 3 else None
        return stated or len(self.mean) or 3


def prepare(image: Image, preparation: Preparation, channels: int, where: str) -> npt.NDArray[np.float32]:
    """An image as an array.

    Args:
        image: From Pillow.
        preparation: What becomes of it.
        channels: A key of `MODES`.
        where: For errors.

    Returns:
        (channels, height, width), or where they come last (height, width, channels).

    Raises:
        SubpruneError: Images have not so many channels, or the numbers of the normalisation do not fit them.
    """
    if channels not in MODES:
        raise SubpruneError(f"images have no {channels} channels", where=where, remedy="pass --calib X.npz")
    for name, values in (("--mean", preparation.mean), ("--std", preparation.std)):
        if len(values) not in (0, 1, channels):
            what = f"has {len(values)} numbers, the network takes {channels} channels"
            raise SubpruneError(what, where=name, remedy="give one for each channel")
    image = image.convert(MODES[channels])
    if preparation.resize:
        image = _resized(image, preparation.resize, INTERPOLATIONS.index(preparation.interpolation))
    levels = np.asarray(image, np.float32).reshape(image.height, image.width, channels)
    pixels = levels.transpose(2, 0, 1) / np.float32(255)
    if preparation.crop:
        pixels = _cropped(pixels, preparation.crop)
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (preparation.mean or 0, preparation.std or 1))
    normalised = (pixels - mean) / std
    return np.ascontiguousarray(normalised.transpose(1, 2, 0) if preparation.last else normalised)


def _resized(image: Image, size: Sequence[int], interpolation: int) -> Image:
    from PIL.Image import Resampling  # noqa: PLC0415 - an optional dependency

    method = (Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS)[interpolation]
    if len(size) == 2:
        return image.resize((size[1], size[0]), method)
    shorter = min(image.size)
    return image.resize((size[0] * image.width // shorter, size[0] * image.height // shorter), method)


def _cropped(pixels: npt.NDArray[np.float32], size: Sequence[int]) -> npt.NDArray[np.float32]:
    """The middle; what is smaller is padded with zeros (black)."""
    height, width = (size[0], size[-1])
    lack = [max(0, want - have) for want, have in zip((height, width), pixels.shape[1:], strict=True)]
    if any(lack):
        pixels = np.pad(pixels, ((0, 0), *((gap // 2, gap - gap // 2) for gap in lack)))
    top, left = (round((have - want) / 2) for want, have in zip((height, width), pixels.shape[1:], strict=True))
    return pixels[:, top : top + height, left : left + width]


def find_images(folder: Path) -> list[Path]:
    """Image files in a folder and below it, sorted; hidden ones are left out.

    Raises:
        SubpruneError: There is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        remedy = f"give a folder with {', '.join(sorted(SUFFIXES)[:4])}... files, or an .npz file"
        raise SubpruneError("holds no images", where=str(folder), remedy=remedy)
    return found


def classes_of(folder: Path, files: Sequence[Path]) -> dict[str, int] | None:
    """The number of each class, by its folder's name: alphabetical order, as torchvision's `ImageFolder` has it.

    Returns:
        None where an image lies in no folder of its own class.
    """
    names = [path.relative_to(folder).parts for path in files]
    if any(len(parts) < 2 for parts in names):
        return None
    return {name: number for number, name in enumerate(sorted({parts[0] for parts in names}))}


def read_image(path: Path, preparation: Preparation, channels: int) -> npt.NDArray[np.float32]:
    """One file, see `prepare`.

    Raises:
        SubpruneError: Pillow is not installed; the file is damaged, or larger than Pillow trusts.
    """
    module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(path) as image:
                return prepare(image, preparation, channels, str(path))
    except SubpruneError:
        raise
    except Exception as error:
        what = f"is not an image that Pillow reads ({first_line(error)})"
        raise SubpruneError(what, where=str(path), remedy="remove it") from error


def pillow() -> Any:
    """`PIL.Image`.

    Raises:
        SubpruneError: It is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise SubpruneError("reading images needs Pillow", remedy="pip install pillow") from error
    return Image
