"""Inputs and labels as users give them to the library, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.bundle import Bundle, Inputs
from subprune_fx.errors import SubpruneError

Array = Tensor | NDArray[Any]
Given = Array | Bundle | Sequence[Array] | Mapping[str, Array]
"""Inputs of a network with one; or of one with several, by position or by name."""


def inputs_of(value: Given, where: str) -> Inputs:
    """Calibration or evaluation inputs as a tensor, or several as a bundle.

    Raises:
        SubpruneError: They are no tensors or arrays, float64 arrays, empty, not finite, or not of one length.
    """
    if isinstance(value, Bundle):
        return _level(value.map(lambda part: _tensor(part, where)), where)
    if isinstance(value, Mapping):
        found = tuple(_tensor(item, f"{where} {name}") for name, item in value.items())
        return _level(Bundle(found, tuple(value)), where)
    if isinstance(value, (tuple, list)):
        found = tuple(_tensor(item, f"{where} {place}") for place, item in enumerate(value))
        return found[0] if len(found) == 1 else _level(Bundle(found), where)
    return _tensor(value, where)


def enough(inputs: Inputs, batch: int | None, where: str) -> None:
    """Refuse fewer inputs than a network takes at a time.

    Args:
        inputs: (samples, ...).
        batch: The only batch size that the network takes; None: any.
        where: What they were given as.

    Raises:
        SubpruneError: They are fewer.
    """
    if batch is not None and len(inputs) < batch:
        given = "there is 1 input" if len(inputs) == 1 else f"there are {len(inputs)} inputs"
        what = f"the network takes batches of exactly {batch}, and {given}"
        raise SubpruneError(what, where=where, remedy=f"give at least {batch}")


def _level(bundle: Bundle, where: str) -> Bundle:
    lengths = {len(part) for part in bundle.parts}
    if len(lengths) != 1:
        counts = ", ".join(str(len(part)) for part in bundle.parts) or "no inputs"
        raise SubpruneError(f"holds different numbers of samples ({counts})", where=where, remedy="pair them up")
    return bundle


def _tensor(value: Any, where: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().contiguous()  # tracing takes no views with gaps
    except (RuntimeError, TypeError, ValueError) as error:
        what = f"is a {type(value).__name__}, not a tensor or an array"
        remedy = "give one, or a tuple or dict of them; of a loader, the inputs of its batches joined"
        raise SubpruneError(what, where=where, remedy=remedy) from error
    if tensor.dtype is torch.float64 and isinstance(value, np.ndarray):
        raise SubpruneError("is float64, the network takes float32", where=where, remedy="use .astype('float32')")
    if tensor.ndim == 0 or len(tensor) == 0:
        raise SubpruneError("holds no samples", where=where, remedy="the first axis counts the samples")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise SubpruneError("holds NaN or infinite values", where=where, remedy="clean the inputs")
    return tensor


def labels_of(value: Array, samples: int, where: str) -> Tensor:
    """Labels as int64, (samples,), on the CPU, where classes are counted.

    Raises:
        SubpruneError: They are not that many integers.
    """
    tensor = torch.as_tensor(value).detach()
    if tensor.is_floating_point() or tensor.shape != (samples,):
        what = f"has shape {tuple(tensor.shape)} and type {tensor.dtype}"
        raise SubpruneError(what, where=where, remedy=f"give {samples} integers")
    return tensor.long().cpu()


def labelled(pair: tuple[Given, Array] | None, where: str) -> tuple[Inputs, Tensor] | None:
    """Inputs and their labels, checked as by `inputs_of` and `labels_of`; None stays None."""
    if pair is None:
        return None
    inputs = inputs_of(pair[0], where)
    return inputs, labels_of(pair[1], len(inputs), f"{where} labels")
