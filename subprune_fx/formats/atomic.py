"""Write files so that readers see the whole new file or the old one, and failures leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from subprune_fx.errors import SubpruneError


def check_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a target that cannot be written, before any work is done for it.

    Args:
        path: The file to be written.

    Returns:
        The path.

    Raises:
        SubpruneError: The path is a folder, or its folder is missing, is not a folder or cannot be written.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise SubpruneError("is a folder", where=str(target), remedy="name a file in it")
    if not folder.exists():
        raise SubpruneError(f"the output folder {folder} does not exist", where=str(target), remedy="create it first")
    if not folder.is_dir():
        raise SubpruneError(f"{folder} is not a folder", where=str(target), remedy="choose another output path")
    if target.exists() and not target.is_file():  # a device or a pipe would be replaced by a plain file
        raise SubpruneError("exists and is not a regular file", where=str(target), remedy="choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SubpruneError(
            f"the output folder {folder} cannot be written", where=str(target), remedy="check its rights"
        )
    return target


def check_targets(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """`check_target` for several files, which must also differ.

    Args:
        paths: The files to be written.

    Returns:
        The paths.

    Raises:
        SubpruneError: One cannot be written, or two are the same.
    """
    targets = [check_target(path) for path in paths]
    seen: set[Path] = set()
    for target in targets:
        resolved = target.resolve()
        if resolved in seen:
            raise SubpruneError("is named twice as an output", where=str(target), remedy="name each output once")
        seen.add(resolved)
    return targets


@contextlib.contextmanager
def staged(targets: Sequence[str | os.PathLike[str]]) -> Iterator[Mapping[Path, Path]]:
    """Temporary files beside their targets, renamed onto them together when the block succeeds.

    All files are complete and flushed to disk before the first rename, so that a failure while one of several
    outputs is made changes none of them. The temporaries keep their target's suffix (writers look at it) and
    lie in its folder (a rename is atomic within one file system only).

    Args:
        targets: The files to write; all different.

    Yields:
        Target -> the temporary file to write instead.

    Raises:
        SubpruneError: A target cannot be written (see `check_target`), is named twice, or a rename failed.
    """
    paths = check_targets(targets)
    temporaries: dict[Path, Path] = {}
    try:
        for path in paths:
            temporaries[path] = _temporary(path)
        yield MappingProxyType(temporaries)
        for path, temporary in temporaries.items():
            with naming(path):
                _flush(temporary)
        for path, temporary in temporaries.items():
            _replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """`staged` for a single file.

    Args:
        target: The file to write.

    Yields:
        The temporary file to write instead.

    Raises:
        SubpruneError: The target cannot be written.
    """
    with staged([target]) as temporaries:
        yield temporaries[Path(target)]


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Say for which target it is that the system cannot write, in place of the temporary file.

    Args:
        target: What is written in the block.

    Raises:
        SubpruneError: The disk is full, or the like.
    """
    try:
        yield
    except OSError as error:
        raise SubpruneError(f"cannot be written ({error.strerror})", where=str(target)) from error


def _temporary(path: Path) -> Path:
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:64]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    # mkstemp makes private files; the output gets the rights that any newly written file would have.
    umask = os.umask(0)
    os.umask(umask)
    Path(name).chmod(0o666 & ~umask)
    return Path(name)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(temporary: Path, path: Path) -> None:
    with naming(path):
        temporary.replace(path)
