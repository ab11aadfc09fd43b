"""What a network's outputs hold of each sample: numbers, a row a sample, wherever samples stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from subprune_fx.errors import SubpruneError

VARYING = "how many numbers the network gives depends on the input"
REMEDY = "cut it before that (a detector's selection, say), or pass budget='error'"

Rows = list[Tensor | None]


def rows_of(output: Any, samples: int) -> Rows:
    """By tensor of a network's output its numbers, a row a sample; None where they are not of one sample each.

    Samples may stand on any dimension (time first, say), or be several entries of the first one.
    """
    return [_rows(tensor, samples) for tensor in tensors_of(output)]


def axis_of(shape: Sequence[int], samples: int) -> int | None:
    """The dimension on which samples stand."""
    return next((d for d, size in enumerate(shape) if size == samples), None)


def _rows(tensor: Tensor, samples: int) -> Tensor | None:
    axis = axis_of(tensor.shape, samples)
    if axis is not None:
        tensor = tensor.movedim(axis, 0)
    elif samples > 1 and (not tensor.ndim or len(tensor) % samples):
        return None
    return tensor.reshape(samples, -1) if tensor.numel() else None


def width_of(rows: Tensor | None) -> int:
    """Numbers of a sample; 0: none."""
    return 0 if rows is None else rows.shape[1]


def is_steady(batches: Sequence[Tensor | None]) -> bool:
    """Whether there is as much of a tensor for each input."""
    widths = set(map(width_of, batches))
    return len(widths) == 1 and 0 not in widths


def numbered(batches: Sequence[Rows], places: Sequence[int]) -> list[int]:
    """Without classes and positions (of a detector, say) that come with numbers."""
    numbers = [place for place in places if _is_number(batches[0][place])]
    return numbers or list(places)


def _is_number(rows: Tensor | None) -> bool:
    return rows is not None and rows.is_floating_point()


def flat(output: Any, samples: int) -> Tensor:
    """All of an output's numbers, a row a sample; without classes and positions that come with them.

    Raises:
        SubpruneError: None are of one sample each.
    """
    rows = rows_of(output, samples)
    places = numbered([rows], [place for place, row in enumerate(rows) if row is not None])
    if not places:
        raise SubpruneError(VARYING, remedy=REMEDY)
    return _joined(rows, places)


def _joined(rows: Rows, places: Sequence[int]) -> Tensor:
    return torch.cat([row for place in places if (row := rows[place]) is not None], dim=1)


def numbers_of(rows: Rows, places: Sequence[int]) -> Tensor:
    """To calculate with: infinities (scores of what may not be chosen) count as zero."""
    numbers = _joined(rows, places).cpu().double()
    return numbers.masked_fill(numbers.isinf(), 0.0)


def tensors_of(output: Any) -> list[Tensor]:
    """Its tensors; complex numbers as their two parts."""
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in tensors]
