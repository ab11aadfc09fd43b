"""Arrays out of `.npy` and `.npz` files, never more of them than the file holds or the memory takes."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from subprune_fx.errors import SubpruneError
from subprune_fx.sizes import size_text

Array = npt.NDArray[Any]
Read = Callable[[], Array]

MAGIC = b"\x93NUMPY"
HOW_TO_SAVE = 'save it with numpy.savez(path, x=inputs.astype("float32"))'
# The third version differs in the names of fields, and what is read here has none.
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST_NAME = 200
FEWER = "give fewer samples: a few hundred are enough"


def open_arrays(path: str | os.PathLike[str]) -> Mapping[str, Read]:
    """What is in a file: a function that reads it, by name. An `.npy` file holds one array, `x`.

    Args:
        path: The file; told from its content, not its name.

    Raises:
        SubpruneError: It is missing, a folder, empty, unreadable, or neither `.npz` nor `.npy`.
    """
    file = Path(path)
    if not file.exists():
        raise SubpruneError("no such file or folder", where=str(file))
    if file.is_dir():
        raise SubpruneError("is a folder, not an .npz file", where=str(file))
    try:
        with file.open("rb") as stream:
            start = stream.read(len(MAGIC))
        if start == MAGIC:
            return {"x": lambda: _from_file(file)}
        members = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else None
    except PermissionError as error:
        raise SubpruneError("cannot be read (permission denied)", where=str(file)) from error
    except Exception as error:
        raise SubpruneError("is not an .npz file, or a damaged one", where=str(file), remedy=HOW_TO_SAVE) from error
    if members and not any(name.endswith(".npy") for name in members):
        raise SubpruneError("is a zip file without numpy arrays", where=str(file), remedy=HOW_TO_SAVE)
    if members is None:
        what = "is neither an .npz nor an .npy file, or a truncated one" if start else "is empty"
        raise SubpruneError(what, where=str(file), remedy=HOW_TO_SAVE)
    return {name.removesuffix(".npy")[:LONGEST_NAME]: _member(file, name) for name in members}


def _from_file(file: Path) -> Array:
    with file.open("rb") as stream:
        return _guarded(stream, file.stat().st_size, str(file), "the array")


def _member(file: Path, name: str) -> Read:
    def read() -> Array:
        what = f"array {name.removesuffix('.npy')!r}"
        try:
            with zipfile.ZipFile(file) as archive, archive.open(name) as stream:
                return _guarded(stream, archive.getinfo(name).file_size, str(file), what)
        except SubpruneError:
            raise
        except Exception as error:  # zipfile and zlib each have their own for broken bytes
            raise SubpruneError(f"{what} is damaged", where=str(file), remedy="save it again") from error

    return read


def _guarded(stream: IO[bytes], size: int, where: str, what: str) -> Array:
    try:
        return _read(stream, size, where, what)
    except SubpruneError:
        raise
    except Exception as error:
        raise SubpruneError(f"{what} is damaged", where=where, remedy="save it again") from error


def _read(stream: IO[bytes], size: int, where: str, what: str) -> Array:
    """One array of `size` bytes, header included. A header may claim any shape: it is held against the bytes there."""
    start = stream.read(len(MAGIC) + 2)
    version = tuple(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or version not in HEADERS:
        raise SubpruneError(f"{what} is not a numpy array", where=where, remedy=HOW_TO_SAVE)
    shape, fortran, dtype = HEADERS[version](stream)
    if dtype.hasobject:  # a pickle
        raise SubpruneError(f"{what} holds Python objects", where=where, remedy=HOW_TO_SAVE)
    need, have = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or need > have:
        said = f"{what} is damaged: its header says {size_text(need)}, and {size_text(have)} are there"
        raise SubpruneError(said, where=where, remedy="save it again")
    check_memory(need, where, what)
    data = stream.read(need)
    if len(data) < need:
        raise SubpruneError(f"{what} is damaged: it ends too early", where=where, remedy="save it again")
    flat = np.frombuffer(bytearray(data), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def check_memory(need: int, where: str, what: str, remedy: str = FEWER) -> None:
    """Refuse what would not leave room to work.

    Args:
        need: Bytes.
        where: For the error.
        what: For the error.
        remedy: For the error.

    Raises:
        SubpruneError: It is more than half of the memory that this machine has.
    """
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if need > limit:
        said = f"{what} takes {size_text(need)}, more than half of this machine's memory"
        raise SubpruneError(said, where=where, remedy=remedy)
