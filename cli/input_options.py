"""Options that say where inputs come from and what becomes of them. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCE = "FILE|FOLDER|M:NAME"


def _shapes(context: click.Context, option: click.Parameter, value: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    del context, option
    return tuple(_shape(text) for text in value)


def _shape(value: str) -> tuple[int, ...]:
    sizes = _integers(value)
    if not sizes:
        raise click.BadParameter(f"{value!r} is not a shape with its batch axis first, such as 1,3,32,32.")
    return sizes


def _integers(value: str) -> tuple[int, ...]:
    """Positive numbers; none where it holds anything else."""
    try:
        sizes = tuple(int(size) for size in value.replace("x", ",").split(","))
    except ValueError:
        return ()
    return sizes if min(sizes) > 0 else ()


def _size(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    del context, option
    if value is None:
        return None
    sizes = _integers(value)
    if len(sizes) not in (1, 2) or max(sizes) > LARGEST_IMAGE:
        raise click.BadParameter(f"{value!r} is not a size such as 224 or 224x320 (height, width).")
    return sizes


LARGEST_IMAGE = 2**14


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    del context
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value.split(","))
    except ValueError:
        numbers = ()
    wrong = option.name == "std" and any(number <= 0 for number in numbers)
    if not numbers or wrong or not all(math.isfinite(number) for number in numbers):
        raise click.BadParameter(f"{value!r} is not a number for each channel, such as 0.485,0.456,0.406.")
    return numbers


OPTIONS = (
    click.option("--calib", metavar=SOURCE,
                 help="Calibration inputs, a few hundred, no labels needed: an .npz or .npy file (x, float32, first "
                      "axis = sample), a folder of images, or a Dataset or DataLoader as FILE.py:NAME (it is run). "
                      "Without: made up."),
    click.option("--eval", "evaluate", metavar=SOURCE,
                 help="The same with labels (y in an .npz; folders named after classes): reports the accuracy before "
                      "and after."),
    click.option("--train", metavar=SOURCE,
                 help="Labelled training inputs, which only --select layergreedyfs-fd reads."),
    click.option("--verify", metavar=SOURCE,
                 help="Labelled inputs on which --budget accuracy and --max-drop measure, instead of --calib."),
    click.option("--samples", type=click.IntRange(min=1), metavar="N",
                 help="Most samples to take from a source, drawn at random.  [default: all of a file; of a folder or "
                      "Dataset 512, to evaluate on 2000]"),
    click.option("--preset", metavar="NAME",
                 help="Prepare images as for a published network: imagenet, a torchvision network or weights, or "
                      "timm/NAME."),
    click.option("--resize", callback=_size, metavar="N|HxW", help="Resize images; N: their shorter side."),
    click.option("--crop", callback=_size, metavar="N|HxW", help="Then cut out the middle."),
    click.option("--mean", callback=_numbers, metavar="R,G,B",
                 help="Then subtract this from pixels in 0 to 1, by channel;"),
    click.option("--std", callback=_numbers, metavar="R,G,B", help="and divide by this."),
    click.option("--input-shape", callback=_shapes, multiple=True, metavar="1,3,32,32",
                 help="Input shape, where neither MODEL nor --calib has it; once for each of several inputs."),
)  # fmt: skip


def input_options(function: Function) -> Function:
    """Add `OPTIONS` to a command, in this order."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
