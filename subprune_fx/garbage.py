"""Fewer runs of Python's garbage collector where millions of objects are made that live on.

Importing torch and its exporters, and capturing a network, makes graphs of small objects; the collector walks through
all of them each time that some hundreds more have come, and finds next to nothing. It took a seventh of the whole
command on a small network.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

OBJECTS = 100_000
"""New objects between two runs of the collector."""


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Collect only after `OBJECTS` new ones, inside of the block."""
    before = gc.get_threshold()
    gc.set_threshold(max(OBJECTS, before[0]) if before[0] else 0, *before[1:])  # 0: somebody has turned it off
    try:
        yield
    finally:
        gc.set_threshold(*before)
