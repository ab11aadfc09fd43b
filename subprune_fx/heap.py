"""Memory that was freed and that the C library keeps for later."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Return it to the system, where the C library is one that can: the next stage wants pieces of other sizes."""
    release = _trimmer()
    if release is not None:
        release(0)


@functools.cache
def _trimmer() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None
