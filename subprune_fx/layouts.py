"""Where images have their channels."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = (1, 3, 4)
"""How many channels an image may have: grey, RGB, RGBA."""


def channels_last(shape: Sequence[int | None]) -> bool:
    """Whether only the last axis can be the colours, as TensorFlow and Keras have it.

    Args:
        shape: Of one sample; None for any size.

    Example:
        >>> channels_last((224, 224, 3)), channels_last((3, 224, 224)), channels_last((None, None, 3))
        (True, False, True)
    """
    return len(shape) == 3 and shape[2] in COLOURS and shape[0] not in COLOURS
