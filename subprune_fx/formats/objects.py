"""Inputs out of a user's own Dataset, DataLoader or arrays, named by `module:name`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader

from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.images import Preparation, prepare
from subprune_fx.formats.input_spec import LABELS, ONE, InputSpec, required

Array = npt.NDArray[Any]
Fields = dict[str, Array]

LABEL_NAMES = ("y", "label", "labels", "target", "targets", "class")
REMEDY = "a sample is an input, (input, label), or a dict by the network's arguments"


def fields_of(
    value: Any, takes: Sequence[InputSpec], preparation: Preparation, count: int, seed: int, where: str
) -> Fields:
    """Arrays by name, first axis = sample, at most `count` of them.

    Args:
        value: A DataLoader (it yields batches); anything with a length and indices, of which samples are drawn at
            random; anything else that yields samples, whose first ones are taken; a tensor or an array; or a function
            or class that gives one of these.
        takes: What the network takes.
        preparation: Of images that are not arrays yet.
        count: Most samples.
        seed: Of what is drawn.
        where: For errors.

    Raises:
        SubpruneError: It is none of these, raises something, is empty, or its samples differ in shape.
    """
    try:
        if isinstance(value, type) or (callable(value) and not hasattr(value, "__getitem__")):
            value = value()
        if isinstance(value, Tensor | np.ndarray):
            return {ONE: np.asarray(value[:count])}
        batched = isinstance(value, DataLoader)
        pieces: list[Fields] = []
        held = 0
        for item in _items(value, count, seed, where):
            pieces.append(_fields(item, takes, preparation, where))
            held += len(next(iter(pieces[-1].values()), ())) if batched else 1
            if held >= count:
                break
    except SubpruneError:
        raise
    except Exception as error:
        what = f"cannot be read: {type(error).__name__}: {first_line(error)}"
        raise SubpruneError(what, where=where, remedy="check it in Python") from error
    if not pieces:
        raise SubpruneError("holds no samples", where=where)
    return {name: _joined(pieces, name, batched, where)[:count] for name in pieces[0]}


def _items(value: Any, count: int, seed: int, where: str) -> Iterator[Any]:
    if isinstance(value, DataLoader) or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        if not isinstance(value, Iterable):
            what = f"is {type(value).__name__}, not a Dataset, DataLoader or array"
            raise SubpruneError(what, where=where, remedy=REMEDY)
        return itertools.islice(iter(value), count)
    chosen = np.random.default_rng(seed).permutation(len(value))[:count]
    return (value[int(index)] for index in np.sort(chosen))


def _fields(item: Any, takes: Sequence[InputSpec], preparation: Preparation, where: str) -> Fields:
    """One sample, or one batch, as arrays by name."""
    taken = takes[0] if takes else InputSpec(ONE)
    named = _named(item, takes)
    arrays = {name: _array(value, preparation, taken, where) for name, value in named.items()}
    found = {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}
    known = {taken.name for taken in takes} & found.keys()
    inputs = [name for name in found if name not in LABEL_NAMES]
    if len(required(takes)) < 2 and not known and len(inputs) == 1:
        found[ONE] = found.pop(inputs[0])
    label = next((name for name in LABEL_NAMES if name in found and name not in known), None)
    if label is not None:
        found[LABELS] = found.pop(label)
    return found


def _named(item: Any, takes: Sequence[InputSpec]) -> Mapping[str, Any]:
    if isinstance(item, Mapping) or hasattr(item, "keys"):
        return {str(name): item[name] for name in item.keys()}  # noqa: SIM118 - Hugging Face's encodings are no dicts
    if not isinstance(item, tuple | list):
        return {ONE: item}
    names = required(takes) if len(required(takes)) > 1 else [ONE]
    return dict(zip((*names, LABELS), item, strict=False))


def _array(value: Any, preparation: Preparation, taken: InputSpec, where: str) -> Array:
    if hasattr(value, "convert") and hasattr(value, "resize"):  # Pillow's, whichever its class
        return prepare(value, preparation.fitted(taken), preparation.channels(taken), where)
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 and not isinstance(value, np.ndarray) else array


def _joined(pieces: Sequence[Fields], name: str, batched: bool, where: str) -> Array:
    try:
        arrays = [piece[name] for piece in pieces]
        return np.concatenate(arrays) if batched else np.stack(arrays)
    except (KeyError, ValueError) as error:
        shapes = sorted({str(piece[name].shape) if name in piece else "missing" for piece in pieces})
        what = f"its samples differ in {name!r} ({', '.join(shapes[:3])})"
        raise SubpruneError(what, where=where, remedy="bring them to one shape") from error
