"""Label arrays: one int64 per element of a tensor, saying which channel the element belongs to.

Label 0 means "belongs to no prunable channel". Dimensions that carry no channel have stride 0, so an activation's
labels cost as much as its channel vector.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def constant(shape: Sequence[int]) -> Labels:
    """Labels of a tensor without prunable channels: zeros of `shape`, one element in memory."""
    return expand(np.zeros((1,) * len(shape), dtype=np.int64), shape)


def along(vector: Labels, axis: int, shape: Sequence[int]) -> Labels:
    """Labels that vary along `axis` only: `vector[i]` at position `i`, stride 0 elsewhere."""
    axis %= len(shape)
    view = vector.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return expand(view, shape)


def expand(labels: Labels, shape: Sequence[int]) -> Labels:
    """`np.broadcast_to`, but writable as far as numpy's flags say (torch warns about arrays that are not)."""
    lead = len(shape) - labels.ndim
    strides = [0] * lead + [
        0 if size == 1 else stride for size, stride in zip(labels.shape, labels.strides, strict=True)
    ]
    for size, want in zip(labels.shape, tuple(shape)[lead:], strict=True):
        if size not in (1, want):
            message = f"cannot expand labels of shape {labels.shape} to {tuple(shape)}"
            raise ValueError(message)
    return as_strided(labels, tuple(shape), strides)


def compact(labels: Labels) -> Labels:
    """The same labels with every stride-0 dimension cut to size 1 (rank unchanged)."""
    return labels[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in labels.strides)]


def distinct(labels: Labels) -> Labels:
    """The different labels, ascending, shape (n,).

    Of millions that all differ numpy's `unique`, which hashes, takes a hundred times as long.
    """
    found = np.sort(labels, axis=None)
    first = np.ones(found.size, dtype=bool)
    first[1:] = found[1:] != found[:-1]
    return found[first]


def varying(labels: Labels) -> tuple[int, ...]:
    """Dimensions along which the labels are not constant.

    An array without elements varies nowhere.
    """
    small = compact(labels)
    if small.size == 0:
        return ()
    return tuple(
        axis
        for axis in range(small.ndim)
        if small.shape[axis] > 1 and not np.array_equal(small, np.broadcast_to(small.take([0], axis), small.shape))
    )


def tighten(labels: Labels) -> Labels:
    """The same labels with stride 0 wherever they do not vary: what an op has copied costs little again.

    In memory of their own: a view of what an op has copied would keep all of it.
    """
    small = labels
    for axis in range(labels.ndim):
        first = small[(*(slice(None),) * axis, slice(0, 1))]
        if small.shape[axis] > 1 and (small.strides[axis] == 0 or bool((small == first).all())):
            small = first
    return expand(np.array(small, order="C"), labels.shape)


def cut(labels: Labels, axes: Collection[int]) -> Labels:
    """The same labels with stride 0 along some dimensions, where those at the first index stand for all."""
    first = labels[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(labels.ndim))]
    return expand(first, labels.shape)


def vector(labels: Labels, axis: int) -> Labels:
    """The labels along `axis`, read at index 0 of every other dimension; shape (size of axis,)."""
    axis %= labels.ndim
    return np.ascontiguousarray(labels[tuple(slice(None) if d == axis else 0 for d in range(labels.ndim))])


def survivors(labels: Labels, keep: NDArray[np.bool_]) -> tuple[NDArray[np.int64] | None, ...]:
    """Which indices of each dimension survive.

    Args:
        labels: Labels of the tensor.
        keep: By label, whether it is kept.

    Returns:
        Per dimension the surviving indices, or None where all survive.

    Raises:
        ValueError: If what survives is not a product of indices (the tensor would not be rectangular).
    """
    alive = keep[compact(labels)]
    if alive.all():
        return (None,) * labels.ndim
    picked: list[NDArray[np.int64] | None] = []
    product = np.ones((1,) * labels.ndim, dtype=bool)
    for axis in range(labels.ndim):
        others = tuple(d for d in range(labels.ndim) if d != axis)
        mask = alive.any(axis=others)
        if mask.shape[0] == 1 or mask.all():
            picked.append(None)
            continue
        picked.append(np.flatnonzero(mask))
        product = product & mask.reshape([-1 if d == axis else 1 for d in range(labels.ndim)])
    if not np.array_equal(np.broadcast_to(product, alive.shape), alive):
        message = f"survivors of a tensor of shape {labels.shape} are not rectangular"
        raise ValueError(message)
    return tuple(picked)


def shrink(labels: Labels, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[NDArray[np.int64] | None, ...]:
    """Which indices, of what `before` left of a tensor, survive when only `after` is kept; None where all do."""
    return tuple(
        relative(old, new, size)
        for old, new, size in zip(survivors(labels, before), survivors(labels, after), labels.shape, strict=True)
    )


def relative(old: NDArray[np.int64] | None, new: NDArray[np.int64] | None, size: int) -> NDArray[np.int64] | None:
    """Positions within `old` of the indices `new`, both ascending; None stands for all of `size`."""
    if new is None:
        return None
    found = new if old is None else np.searchsorted(old, new)
    return None if found.size == (size if old is None else old.size) else found
