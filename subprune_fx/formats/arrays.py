"""Calibration and evaluation arrays from `.npz` files, and synthetic ones where there is no file."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subprune_fx.errors import SubpruneError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Inputs = Floats | Labels

# What x may be, and as what it is fed: tokens are integers, an image in bytes has not been normalised.
DTYPES: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float32): np.float32,
    np.dtype(np.int32): np.int64,
    np.dtype(np.int64): np.int64,
}
Shape = Sequence[int | None]

HOW_TO_SAVE = 'save it with numpy.savez(path, x=inputs.astype("float32"))'


def load_calibration(path: str | os.PathLike[str], input_shape: Shape | None = None) -> Inputs:
    """The unlabelled inputs that a compilation is calibrated on.

    Args:
        path: An `.npz` file with `x`: float32 (tokens: int64), first axis = sample, else the network's own input.
        input_shape: The network's input shape with its batch axis first; the batch axis and axes that are
            None are not compared. None: nothing is compared.

    Returns:
        `x`, at least one sample, all finite.

    Raises:
        SubpruneError: Not such a file: missing, foreign, damaged, wrong key, dtype or shape, no samples, NaN
            or Inf.
    """
    with _npz(path) as archive:
        return _inputs(archive, path, input_shape)


def load_labels(path: str | os.PathLike[str]) -> Labels | None:
    """The labels `y` of a calibration file, for the accuracy of the paper's eq. (6); None without them.

    Args:
        path: An `.npz` file with `x` and perhaps `y`.

    Returns:
        `y`, integer (n,), or None.

    Raises:
        SubpruneError: `y` is there but is not one integer per sample.
    """
    with _npz(path) as archive:
        if "y" not in archive:
            return None
        return _labels(archive, path, len(_array(archive, "x", path)))


def load_evaluation(path: str | os.PathLike[str], input_shape: Shape | None = None) -> tuple[Inputs, Labels]:
    """The labelled inputs on which accuracy is measured.

    Args:
        path: An `.npz` file with `x` as for `load_calibration` and `y`: integer (n,), the classes.
        input_shape: As for `load_calibration`.

    Returns:
        `(x, y)`.

    Raises:
        SubpruneError: As for `load_calibration`; `y` missing, not integer, not one per sample, or negative.
    """
    with _npz(path) as archive:
        inputs = _inputs(archive, path, input_shape)
        return inputs, _labels(archive, path, len(inputs))


def synthetic(shape: Sequence[int], n: int, seed: int) -> Floats:
    """Standard normal inputs, for a network that came without calibration data.

    Elements are independent (not smoothed): the scale of normalised data and none of its structure. Channels
    are then ranked by how they answer to noise, which is good enough to compile, not to keep accuracy.

    Args:
        shape: The network's input shape; its first (batch) axis is replaced by `n`.
        n: Number of samples.
        seed: Seed of the generator.

    Returns:
        Float32 (n, *shape[1:]).
    """
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, *shape[1:]), dtype=np.float32)


@contextlib.contextmanager
def _npz(path: str | os.PathLike[str]) -> Iterator[np.lib.npyio.NpzFile]:
    file = Path(path)
    if not file.exists():
        raise SubpruneError("no such file", where=str(file))
    if file.is_dir():
        raise SubpruneError("is a folder, not an .npz file", where=str(file))
    if not zipfile.is_zipfile(file):
        what = "is empty" if file.stat().st_size == 0 else "is not an .npz file, or a truncated one"
        raise SubpruneError(what, where=str(file), remedy=HOW_TO_SAVE)
    try:
        archive = np.load(file, allow_pickle=False)
    except PermissionError as error:
        raise SubpruneError("cannot be read (permission denied)", where=str(file)) from error
    except Exception as error:
        raise SubpruneError("is not an .npz file, or a damaged one", where=str(file), remedy=HOW_TO_SAVE) from error
    with archive:
        yield archive


def _array(archive: np.lib.npyio.NpzFile, key: str, path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    if key not in archive:
        found = ", ".join(sorted(archive)[:8]) or "none"
        raise SubpruneError(f"has no array {key!r} (arrays found: {found})", where=str(path), remedy=HOW_TO_SAVE)
    try:
        array = archive[key]
    except ValueError as error:  # numpy's word for an object array, which is a pickle
        what = f"array {key!r} holds Python objects or is damaged"
        raise SubpruneError(what, where=str(path), remedy=HOW_TO_SAVE) from error
    except Exception as error:  # zipfile, zlib and numpy each have their own for broken bytes
        raise SubpruneError(f"array {key!r} is damaged", where=str(path), remedy="save it again") from error
    if not isinstance(array, np.ndarray):  # a member that is no .npy comes back as bytes
        raise SubpruneError(f"{key!r} is not a numpy array", where=str(path), remedy=HOW_TO_SAVE)
    return array


def _inputs(archive: np.lib.npyio.NpzFile, path: str | os.PathLike[str], input_shape: Shape | None) -> Inputs:
    where = f"{path}: x"
    array = _array(archive, "x", path)
    wanted = DTYPES.get(array.dtype.newbyteorder("="))
    if wanted is None:
        raise SubpruneError(f"is {array.dtype}, not float32", where=where, remedy='convert it with x.astype("float32")')
    if array.ndim == 0 or len(array) == 0 or array.size == 0:
        what = f"holds no samples (shape {_say(array.shape)})"
        raise SubpruneError(what, where=where, remedy="the first axis counts the samples; give a few hundred")
    _check_shape(array.shape, input_shape, where)
    _check_finite(array, where)
    return np.ascontiguousarray(array, dtype=wanted)  # also native byte order


def _check_shape(shape: tuple[int, ...], expected: Shape | None, where: str) -> None:
    if expected is None:
        return
    fits = len(shape) == len(expected) and all(
        want is None or want == have for want, have in zip(expected[1:], shape[1:], strict=True)
    )
    if fits:
        return
    wanted = _say(["n", *("?" if size is None else size for size in expected[1:])])
    raise SubpruneError(f"has shape {_say(shape)}, the network takes {wanted}", where=where, remedy="n is the samples")


def _check_finite(array: npt.NDArray[Any], where: str) -> None:
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count == 0:
        return
    first = _say(np.unravel_index(int(bad.argmax()), array.shape))
    what = f"holds {count} NaN or infinite value{'s' if count > 1 else ''}, the first at index {first}"
    raise SubpruneError(what, where=where, remedy="remove those samples")


def _labels(archive: np.lib.npyio.NpzFile, path: str | os.PathLike[str], samples: int) -> Labels:
    where = f"{path}: y"
    array = _array(archive, "y", path)
    if array.dtype.kind not in "iu":
        raise SubpruneError(f"is {array.dtype}, not integer", where=where, remedy="y holds one class number per sample")
    if array.shape != (samples,):
        what = f"has shape {_say(array.shape)}, x has {samples} samples"
        raise SubpruneError(what, where=where, remedy="y holds one class number per sample")
    if array.size and int(array.min()) < 0:
        raise SubpruneError(f"holds the negative class {int(array.min())}", where=where, remedy="classes count from 0")
    return array.astype(np.int64)


def _say(shape: Sequence[Any]) -> str:
    return str(tuple(str(size) for size in shape)).replace("'", "")
