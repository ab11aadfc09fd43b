"""Options that say where inputs come from and what becomes of them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from subprune_fx.cli import values

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCE = "FILE|FOLDER|M:NAME"

# fmt: off
OPTIONS = (
    click.option("--calib", metavar=SOURCE,
                 help="Calibration inputs, a few hundred, no labels needed: an .npz or .npy file (x, float32, first "
                      "axis = sample), a folder of images, or a Dataset or DataLoader as FILE.py:NAME (it is run).  "
                      "[default: made up]"),
    click.option("--eval", "evaluate", metavar=SOURCE,
                 help="The same with labels (y in an .npz; folders named after classes): reports the accuracy before "
                      "and after."),
    click.option("--train", metavar=SOURCE,
                 help="Labelled training inputs, which only --select layergreedyfs-fd reads."),
    click.option("--verify", metavar=SOURCE,
                 help="Labelled inputs on which --budget accuracy and --max-drop measure, instead of --calib."),
    click.option("--samples", type=click.IntRange(min=1), metavar="N",
                 help="Most samples to take from a source, drawn at random.  [default: all of a file; of a folder or "
                      "Dataset 512, of --eval, --verify and --train 2000]"),
    click.option("--preset", metavar="NAME",
                 help="Prepare images as for a published network: imagenet, a torchvision network or weights, or "
                      "timm/NAME."),
    click.option("--resize", callback=values.image_size, metavar="N|HxW",
                 help="Resize images; N: their shorter side."),
    click.option("--crop", callback=values.image_size, metavar="N|HxW", help="Cut out the middle of resized images."),
    click.option("--mean", callback=values.by_channel, metavar="R,G,B",
                 help="Subtract this from pixels in 0 to 1, by channel."),
    click.option("--std", callback=values.by_channel, metavar="R,G,B", help="Then divide by this, by channel."),
    click.option("--input-shape", callback=values.shapes, multiple=True, metavar="1,3,32,32",
                 help="Shape of an input, batch axis first, where neither MODEL nor --calib tells it; once for each "
                      "of several inputs."),
)
# fmt: on


def input_options(function: Function) -> Function:
    """Add `OPTIONS` to a command, in this order."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
