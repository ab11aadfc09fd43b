"""Inputs and labels from arrays: checked, and put in the network's order."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subprune_fx.bundle import Bundle, Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.input_spec import LABELS, InputSpec, Shape, pair
from subprune_fx.formats.npy import HOW_TO_SAVE, open_arrays

Array = npt.NDArray[Any]

# What inputs may be, and as what they are fed: tokens are integers. An image in bytes has not been normalised; only a
# network that says that it takes bytes does so itself.
DTYPES: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float32): np.float32,
    np.dtype(np.int32): np.int64,
    np.dtype(np.int64): np.int64,
    np.dtype(np.bool_): np.bool_,
}
_STATED: dict[torch.dtype, tuple[type[np.generic], ...]] = {
    torch.uint8: (np.uint8,),
    torch.int8: (np.int8,),
    torch.int16: (np.int16,),
    torch.int32: (np.int32, np.int64),
}
"""What inputs may be of a network that says that it takes such: the first is what they are fed as."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs that were read.

    Attributes:
        inputs: At least one sample.
        labels: Their classes, int64, (samples,); None where there are none.
        notes: What the user should know about them.
    """

    inputs: Inputs
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()


def load_arrays(path: str | os.PathLike[str], takes: Sequence[InputSpec] = (), *, labelled: bool = False) -> Samples:
    """Inputs from an `.npy` or `.npz` file, and labels where there are any.

    Args:
        path: With arrays that `takes.pair` finds, and perhaps the classes `y`, integer (n,). Inputs are float32, tokens
            int64; their first axis counts samples.
        takes: What the network takes.
        labelled: Labels must be there.

    Raises:
        SubpruneError: Not such a file: missing, foreign, damaged, wrong name, type or shape, no samples, NaN or Inf;
            labels that are missing, not integer, not one per sample, or negative.
    """
    return samples_of(open_arrays(path), takes, str(path), labelled=labelled)


def samples_of(
    arrays: Mapping[str, Callable[[], Array]], takes: Sequence[InputSpec], where: str, *, labelled: bool = False
) -> Samples:
    """As `load_arrays`, of arrays that are read when they are needed.

    Args:
        arrays: By name.
        takes: What the network takes.
        where: Where they are from, for errors.
        labelled: Labels must be there.

    Raises:
        SubpruneError: See `load_arrays`.
    """
    pairs = pair(arrays, takes, where)
    found = {taken.keyword: checked(arrays[name](), taken, f"{where}: {name}") for name, taken in pairs}
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        what = f"different numbers of samples ({', '.join(f'{name} {count}' for name, count in lengths.items())})"
        raise SubpruneError(what, where=where, remedy="the first axis counts the samples")
    tensors = tuple(torch.from_numpy(array) for array in found.values())
    alone = len(tensors) == 1 and (not takes or pairs[0][1] == takes[0])
    inputs = tensors[0] if alone else Bundle(tensors, tuple(found))
    has_labels = LABELS in arrays and LABELS not in [name for name, _ in pairs]
    if labelled and not has_labels:
        names = ", ".join(sorted(arrays)[:8])
        raise SubpruneError(f"has no array {LABELS!r} (arrays found: {names})", where=where, remedy=HOW_TO_SAVE_BOTH)
    return Samples(inputs, _labels(arrays[LABELS](), len(inputs), f"{where}: {LABELS}") if has_labels else None)


HOW_TO_SAVE_BOTH = HOW_TO_SAVE.removesuffix(")") + ", y=labels)"


def checked(array: Array, taken: InputSpec, where: str) -> Array:
    """An array as the network takes it: contiguous, in native byte order.

    Args:
        array: First axis = sample.
        taken: The input that it is.
        where: For errors.

    Raises:
        SubpruneError: It has another type or shape, no samples, or values that are not finite.
    """
    kind = taken.dtype
    stated = () if kind is None else _STATED.get(kind, ())
    types = {np.dtype(one): stated[0] for one in stated} or DTYPES
    usual = stated[0].__name__ if stated else "float32"
    wanted = types.get(array.dtype.newbyteorder("="))
    if wanted is None:
        raise SubpruneError(
            f"is {array.dtype}, not {usual}", where=where, remedy=f'convert it with x.astype("{usual}")'
        )
    if kind is not None and kind.is_floating_point is not (wanted is np.float32):
        other = "float32" if kind.is_floating_point else str(kind).removeprefix("torch.")
        what = f"is {array.dtype}, the network takes {other}"
        raise SubpruneError(what, where=where, remedy=f'convert it with x.astype("{other}")')
    if array.ndim == 0 or len(array) == 0 or array.size == 0:
        what = f"holds no samples (shape {_say(array.shape)})"
        raise SubpruneError(what, where=where, remedy="the first axis counts the samples; give a few hundred")
    _check_shape(array.shape, taken.accepts, where)
    _check_finite(array, where)
    return np.ascontiguousarray(array, dtype=wanted)


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


def _check_finite(array: Array, where: str) -> None:
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count == 0:
        return
    first = _say(np.unravel_index(int(bad.argmax()), array.shape))
    what = f"holds {count} NaN or infinite value{'s' if count > 1 else ''}, the first at index {first}"
    raise SubpruneError(what, where=where, remedy="remove those samples")


def _labels(array: Array, samples: int, where: str) -> Tensor:
    remedy = "y holds one class number per sample"
    if array.dtype.kind not in "iu":
        raise SubpruneError(f"is {array.dtype}, not integer", where=where, remedy=remedy)
    if array.shape != (samples,):
        what = f"has shape {_say(array.shape)}, and there are {samples} samples"
        raise SubpruneError(what, where=where, remedy=remedy)
    if array.size and int(array.min()) < 0:
        raise SubpruneError(f"holds the negative class {int(array.min())}", where=where, remedy="classes count from 0")
    return torch.from_numpy(array.astype(np.int64))


def _say(shape: Sequence[Any]) -> str:
    return str(tuple(str(size) for size in shape)).replace("'", "")
