"""`with torch.autocast(...)` in a forward, left out: what rounding it asks for is no part of what a network computes.

Inside such a block torch.export sees one operation and fx nothing at all; and files for other runtimes have their own
ways to compute in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def unrounded() -> Iterator[None]:
    """Inside, networks compute in the precision of their weights."""
    entered, left = torch.autocast.__enter__, torch.autocast.__exit__
    torch.autocast.__enter__ = _enter  # type: ignore[method-assign]
    torch.autocast.__exit__ = _leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = entered  # type: ignore[method-assign]
        torch.autocast.__exit__ = left  # type: ignore[method-assign]


def _enter(block: torch.autocast) -> torch.autocast:
    return block


def _leave(*_: Any) -> None:
    return None
