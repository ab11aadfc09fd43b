"""Freed memory: what the C library keeps of it, and what goes back to the system.

Left to itself, glibc maps every block of more than 32 MB anew and returns it when it is freed, so that the system has
to clear all of its pages each time: a sixth of the whole command on VGG11.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""What glibc's `mallopt` can be told: how much free memory is kept, from which size on blocks are mapped alone, and how
many heaps there are."""

LARGEST = 2**31 - 1
"""`mallopt` takes an int."""

LARGE = 1 << 24
"""Parameters from which a network is large: then large blocks are returned. ResNet50 takes as long, and 0.2 GB less."""

ALONE = 1 << 25
"""Bytes from which a block of a large network is mapped alone, so that it goes when it is freed."""

WORTH = 1 << 28
"""Least bytes that are worth returning to the system."""

DONT_NEED = 4
"""Linux's MADV_DONTNEED. Of a shared mapping it loses nothing."""


def keep(parameters: int) -> None:
    """Let the C library keep freed memory from now on, instead of returning it to the system, where it can (glibc).

    Args:
        parameters: Of the network, already loaded; of a large one only small blocks are kept.
    """
    trim()  # the file that it came from is as large
    library = _library()
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, LARGEST)
        library.mallopt(MMAP_THRESHOLD, ALONE if parameters > LARGE else LARGEST)
        library.mallopt(ARENA_MAX, 1)  # what one thread has freed, another can have: VGG11 takes a quarter less


def trim() -> None:
    """Return freed memory to the system, where the C library can: the next stage wants pieces of other sizes.

    Less than `WORTH` is kept: it would soon be wanted again, and the system would have to clear every page of it.
    """
    library = _library()
    if not hasattr(library, "malloc_trim"):
        return
    idle = _idle(library)
    if idle is None:
        library.malloc_trim(0)
    elif _heap.idle is None or idle - _heap.idle >= WORTH:
        library.malloc_trim(0)
        _heap.idle = _idle(library)


def release(storage: torch.UntypedStorage) -> None:
    """Give back the memory of a mapped file; what is read of it again comes from the file."""
    library = _library()
    if hasattr(library, "madvise") and sys.platform == "linux":  # elsewhere its constants and meaning are others
        library.madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()), DONT_NEED)


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Info
    return library


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


@dataclasses.dataclass
class _Heap:
    """What is known of this process's heap.

    Attributes:
        idle: What `_idle` was after the last `trim`.
    """

    idle: int | None = None


_heap = _Heap()


def _idle(library: Any) -> int | None:
    """Bytes that are in memory and not in use, and what of the process is not on the heap; None where nobody knows.

    That is, before glibc 2.33 and where there is no /proc.
    """
    statm = Path("/proc/self/statm")
    if not hasattr(library, "mallinfo2") or not statm.exists():
        return None
    resident, shared = (int(pages) for pages in statm.read_text(encoding="ascii").split()[1:3])
    known = library.mallinfo2()
    return (resident - shared) * mmap.PAGESIZE - int(known.uordblks) - int(known.hblkhd)
