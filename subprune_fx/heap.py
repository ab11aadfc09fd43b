"""Memory that is not in use: what the C library keeps of it, and what goes back to the system.

Left to itself, glibc maps every block of more than 32 MB anew and returns it when it is freed, so that the system has
to clear all of its pages each time: a sixth of the whole command on VGG11.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGEST = 2**31 - 1
"""`mallopt` takes an int."""

KEEP = {
    -1: LARGEST,  # M_TRIM_THRESHOLD: free memory that is kept
    -3: LARGEST,  # M_MMAP_THRESHOLD: the size from which on blocks are mapped alone
    -8: 1,  # M_ARENA_MAX: what one thread has freed, another can have; several heaps took a quarter more on VGG11
}
"""What glibc's `mallopt` is told."""


DONT_NEED = 4
"""Linux's MADV_DONTNEED. Of a shared mapping it loses nothing."""


def keep() -> None:
    """Keep what is freed, in this process from now on, where the C library is one that can."""
    library = _library()
    if hasattr(library, "mallopt"):
        for parameter, value in KEEP.items():
            library.mallopt(parameter, value)


LARGE = 1 << 24
"""Parameters from which room counts for more: ResNet50 takes as long without `keep`, within 1 %, and 0.2 GB less."""

ALONE = 1 << 25
"""Bytes from which a block of a large network is mapped alone, so that it goes when it is freed."""


def suit(parameters: int) -> None:
    """Undo `keep` for the blocks that count, if the network is large.

    Args:
        parameters: How many it has.
    """
    trim()  # the file that it came from is as large
    library = _library()
    if parameters > LARGE and hasattr(library, "mallopt"):
        library.mallopt(-3, ALONE)


def trim() -> None:
    """Return it to the system, where the C library is one that can: the next stage wants pieces of other sizes."""
    library = _library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def release(storage: torch.UntypedStorage) -> None:
    """Give back the memory of a mapped file; what is read of it again comes from the file."""
    library = _library()
    if hasattr(library, "madvise") and sys.platform == "linux":  # elsewhere its constants and meaning are others
        library.madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()), DONT_NEED)


@functools.cache
def _library() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None
