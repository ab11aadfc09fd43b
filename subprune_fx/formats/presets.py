"""How published networks want their images, by the name of the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.images import INTERPOLATIONS, Preparation

IMAGENET = Preparation((256,), (224,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EXAMPLES = "such as imagenet, resnet50, ResNet50_Weights.IMAGENET1K_V1 or timm/resnet50.a1_in1k"


def preset(name: str) -> Preparation:
    """A preparation by name; nothing is downloaded.

    Args:
        name: `imagenet`; a network or a set of weights of torchvision's; or `timm/` and a network of timm's.

    Raises:
        SubpruneError: No such name, or the package is not installed.
    """
    row = next(row for row in PRESETS if row.recognise(name))
    try:
        return row.find(name)
    except ImportError as error:
        what = f"needs {row.package}"
        raise SubpruneError(what, where=f"--preset {name}", remedy=f"pip install {row.package}") from error
    except Exception as error:
        raise SubpruneError("is no preset", where=f"--preset {name}", remedy=EXAMPLES) from error


def _torchvision(name: str) -> Preparation:
    from torchvision import models  # noqa: PLC0415 - an optional dependency

    weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    found = weights.transforms()
    return Preparation(
        tuple(found.resize_size), tuple(found.crop_size), tuple(found.mean), tuple(found.std), found.interpolation.value
    )


def _timm(name: str) -> Preparation:
    import timm  # noqa: PLC0415 - an optional dependency

    found: Any = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    _, height, width = found.input_size
    resize = tuple(math.floor(size / found.crop_pct) for size in (height, width))
    square = (resize[0],) if height == width and found.crop_mode != "squash" else resize
    method = found.interpolation if found.interpolation in INTERPOLATIONS else "bilinear"
    return Preparation(square, (height, width), tuple(found.mean), tuple(found.std), method)


@dataclasses.dataclass(frozen=True)
class _Preset:
    recognise: Callable[[str], bool]
    find: Callable[[str], Preparation]
    package: str


PRESETS = (
    _Preset(lambda name: name == "imagenet", lambda _: IMAGENET, ""),
    _Preset(lambda name: name.startswith("timm/"), _timm, "timm"),
    _Preset(lambda _: True, _torchvision, "torchvision"),
)
