"""The network before pruning as files: sizes and latencies of the pruned network's files are compared with theirs."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch import nn

from subprune_fx.background import Background, can_fork
from subprune_fx.bundle import Inputs
from subprune_fx.passes.writers import Job, Writer, bytes_of

ROOM = 1 << 29
"""Parameters up to which a network may be captured twice at a time."""

PATIENCE = 60.0
"""Seconds that the original may take longer than the other network before it is written once more, in this process."""


class Baseline:
    """The network before, written once in each format, however many networks are compared with it."""

    def __init__(self, module: nn.Module, example: Inputs) -> None:
        self._job = Job(module, example)
        self._folder = tempfile.TemporaryDirectory(prefix="subprune-")
        self._written: dict[str, Path | None] = {}
        self._background: tuple[Background, float, Mapping[str, Writer]] | None = None

    def __enter__(self) -> Self:
        """Its files live as long as the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        if self._background is not None:
            self._background[0].stop()
        self._folder.cleanup()

    def begin(self, writers: Mapping[str, Writer]) -> None:
        """Begin to write it in slow formats, by suffix, in a process of its own where that can be had."""
        slow = {suffix: writer for suffix, writer in writers.items() if writer.slow and suffix not in self._written}
        small = sum(tensor.numel() for tensor in self._job.module.parameters()) <= ROOM
        if slow and small and self._background is None and can_fork():
            self._background = Background(functools.partial(self._write, slow)), time.monotonic(), slow

    def file(self, writer: Writer, suffix: str) -> Path | None:
        """The network in a format; None where it has no such form."""
        if self._background is not None:
            (work, start, slow), self._background = self._background, None
            if work.ended_well(PATIENCE + time.monotonic() - start):
                self._written |= {other: self._found(other) for other in slow}
        if suffix not in self._written:
            self._write({suffix: writer})
            self._written[suffix] = self._found(suffix)
        return self._written[suffix]

    def size(self, path: Path) -> int:
        """Bytes of its file."""
        return bytes_of(path, self._job.module)

    def _write(self, writers: Mapping[str, Writer]) -> None:
        for suffix, writer in writers.items():
            part = self._path(f".part{suffix}")
            with contextlib.suppress(Exception):  # only figures for the report are lost
                writer.write(self._job, part)
                part.rename(self._path(suffix))

    def _found(self, suffix: str) -> Path | None:
        path = self._path(suffix)
        return path if path.exists() else None

    def _path(self, suffix: str) -> Path:
        return Path(self._folder.name) / f"original{suffix}"
