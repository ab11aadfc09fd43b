"""Which line of the user's code a tracer gave up on."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

import subprune_fx

_OURS = tuple(str(Path(package.__file__).resolve().parent) for package in (torch, subprune_fx) if package.__file__)
_QUOTED = re.compile(r'File "([^"]+)", line (\d+), in')


def culprit(error: BaseException) -> str | None:
    """The innermost line of code outside of torch and this package, as `net.py:12: if x.sum() > 0:`.

    Args:
        error: What a tracer raised; torch.export quotes the user's code in its messages too.
    """
    found = [*_frames(error)]
    if not found:
        return None
    path, line = found[-1]
    code = linecache.getline(path, line).strip()
    return f"{Path(path).name}:{line}: {code}" if code else f"{Path(path).name}:{line}"


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_users(frame.filename) and frame.lineno is not None:
            yield frame.filename, frame.lineno
    for path, line in _QUOTED.findall(str(error)):
        if _is_users(path):
            yield path, int(line)


def _is_users(path: str) -> bool:
    return not path.startswith("<") and not str(Path(path).resolve()).startswith(_OURS) and Path(path).is_file()
