"""Where calibration and evaluation inputs come from: each kind of source is a row of `SOURCES`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.arch import definitions
from subprune_fx.formats.arrays import Samples, load_arrays, samples_of
from subprune_fx.formats.images import RESIZE_REMEDY, Preparation, classes_of, find_images, read_image
from subprune_fx.formats.input_spec import LABELS, ONE, InputSpec
from subprune_fx.formats.npy import check_memory
from subprune_fx.formats.objects import fields_of

CALIBRATION_SAMPLES = 512
EVALUATION_SAMPLES = 2000
NOT_NORMALISED = "pixels are fed as 0 to 1: if the network was trained on normalised images, say how with --preset or "


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is wanted of a source.

    Attributes:
        takes: What the network takes.
        preparation: What becomes of images.
        count: Most samples; None: all of a file of arrays, and of the others `CALIBRATION_SAMPLES` or, with labels,
            `EVALUATION_SAMPLES`.
        seed: Of which ones are drawn.
        labelled: Labels must be there.
        option: The option that named the source, for errors.
    """

    takes: tuple[InputSpec, ...] = ()
    preparation: Preparation = dataclasses.field(default_factory=Preparation)
    count: int | None = None
    seed: int = 0
    labelled: bool = False
    option: str = "--calib"

    @property
    def most(self) -> int:
        """Samples to take where not all of them may fit."""
        return self.count or (EVALUATION_SAMPLES if self.labelled else CALIBRATION_SAMPLES)


@dataclasses.dataclass(frozen=True)
class Source:
    """One kind of source."""

    recognise: Callable[[str], bool]
    load: Callable[[str, Wish], Samples]


def load_samples(source: str, wish: Wish) -> Samples:
    """Inputs, and labels where there are any.

    Args:
        source: A file of arrays, a folder of images, or `FILE.py:NAME` / `package.module:NAME`, which is imported, that
            is, run.
        wish: What is wanted of it.

    Raises:
        SubpruneError: It is unusable.
    """
    return next(row for row in SOURCES if row.recognise(source)).load(source, wish)


def _from_folder(source: str, wish: Wish) -> Samples:
    folder = Path(source)
    files = find_images(folder)
    classes = classes_of(folder, files)
    if classes is None and wish.labelled:
        remedy = "put each class's images into a folder of their own: FOLDER/cat/1.jpg"
        raise SubpruneError("has images outside of class folders, so there are no labels", where=source, remedy=remedy)
    chosen = [files[k] for k in _draw(len(files), wish.most, wish.seed)]
    taken = wish.takes[0] if wish.takes else InputSpec(ONE)
    preparation = wish.preparation.fitted(taken)
    channels = preparation.channels(taken)
    first = read_image(chosen[0], preparation, channels)
    check_memory(first.nbytes * len(chosen), source, f"{len(chosen)} images of shape {first.shape}")
    pixels = np.empty((len(chosen), *first.shape), np.float32)
    for row, path in enumerate(chosen):
        image = read_image(path, preparation, channels)
        if image.shape != first.shape:
            what = f"has shape {image.shape}, and {chosen[0].name} has {first.shape}"
            raise SubpruneError(what, where=str(path), remedy=RESIZE_REMEDY)
        pixels[row] = image
    arrays = {ONE: partial(np.asarray, pixels)}
    if classes is not None:
        labels = [classes[path.relative_to(folder).parts[0]] for path in chosen]
        arrays[LABELS] = partial(np.array, labels)
    found = samples_of(arrays, wish.takes, source, labelled=wish.labelled)
    notes = () if preparation.mean or preparation.std else (f"{source}: {NOT_NORMALISED}--mean and --std",)
    return dataclasses.replace(found, notes=notes)


def _from_object(source: str, wish: Wish) -> Samples:
    where = f"{wish.option} {source}"
    module, name = definitions(source, wish.option)
    value = getattr(module, name)
    fields = fields_of(value, wish.takes, wish.preparation, wish.most, wish.seed, where)
    if wish.labelled and LABELS not in fields:
        remedy = "let its samples be (input, label), or dicts with a label"
        raise SubpruneError(f"gives no labels, only {', '.join(fields)[:80]}", where=where, remedy=remedy)
    return samples_of(
        {key: _constant(array) for key, array in fields.items()}, wish.takes, where, labelled=wish.labelled
    )


def _constant(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def _from_arrays(source: str, wish: Wish) -> Samples:
    found = load_arrays(source, wish.takes, labelled=wish.labelled)
    if wish.count is None or len(found.inputs) <= wish.count:
        return found
    rows = torch.from_numpy(_draw(len(found.inputs), wish.count, wish.seed))
    labels = None if found.labels is None else found.labels[rows]
    return dataclasses.replace(found, inputs=found.inputs[rows], labels=labels)


def _draw(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Different indices below `total`, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


SOURCES = (
    Source(lambda source: Path(source).is_dir(), _from_folder),
    Source(lambda source: not Path(source).exists() and bool(re.fullmatch(r".+:[^\W\d]\w*", source)), _from_object),
    Source(lambda _: True, _from_arrays),
)
