"""Sizes of a convolution, what its taps read, and the layout of its Gram matrix."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

ROWS_AT_ONCE = 1 << 14
"""Rows whose products are summed in the activation's own precision before they are added up in float64."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One spatial dimension of a zero-padded convolution.

    Attributes:
        size: Of the input.
        taps: Of the kernel.
        stride: Step.
        dilation: Spacing of the taps.
        padding: Zeros (before, after).
    """

    size: int
    taps: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @property
    def outputs(self) -> int:
        """Size of the output."""
        return (self.size + sum(self.padding) - self.dilation * (self.taps - 1) - 1) // self.stride + 1

    def reads(self, tap: int) -> list[int]:
        """The input position that a tap reads for each output, also where that is padding."""
        return [self.stride * o + self.dilation * tap - self.padding[0] for o in range(self.outputs)]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A zero-padded convolution and the size of its input.

    Attributes:
        channels: Of the input.
        groups: Independent blocks of channels.
        lines: Spatial dimensions.
    """

    channels: int
    groups: int
    lines: tuple[Line, ...]

    @property
    def width(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps by dimension."""
        return tuple(line.taps for line in self.lines)

    @property
    def outputs(self) -> int:
        """Positions of the output."""
        return math.prod(line.outputs for line in self.lines)

    @property
    def positions(self) -> int:
        """Positions of the input."""
        return math.prod(line.size for line in self.lines)

    def taps(self) -> Iterator[tuple[int, ...]]:
        """All taps, in the order of the design matrix's columns."""
        return itertools.product(*(range(taps) for taps in self.kernel))


def region(x: Tensor, ranges: Iterable[slice]) -> Tensor:
    """The part of an activation (samples, channels, ...) within a slice of each spatial dimension."""
    index: tuple[Any, ...] = (..., *ranges)
    return x[index]


def slices(samples: int, size: int) -> Iterator[slice]:
    """All samples, `size` at a time but at least one."""
    step = max(1, size)
    return (slice(start, start + step) for start in range(0, samples, step))


def assembled(
    geometry: Geometry,
    block: Callable[[tuple[int, ...], tuple[int, ...]], Tensor],
    first: Callable[[tuple[int, ...], tuple[int, ...]], bool],
) -> Tensor:
    """A Gram matrix from its blocks.

    Args:
        geometry: The convolution.
        block: For taps p and q, (C, C / groups).
        first: For p and q, whether `block` is asked for them; else it is for q and p, or else for both.

    Returns:
        (groups, d, d).
    """
    groups, width, taps = geometry.groups, geometry.width, list(geometry.taps())
    found: Tensor | None = None
    for (i, p), (j, q) in itertools.product(enumerate(taps), enumerate(taps)):
        if not first(p, q):
            continue
        part = block(p, q).reshape(groups, width, width)
        part = (part + part.mT) / 2 if i == j else part  # products are symmetric up to rounding
        if found is None:
            found = part.new_zeros(groups, width, len(taps), width, len(taps))
        found[:, :, i, :, j] = part
        found[:, :, j, :, i] = part.mT
    assert found is not None
    return found.reshape(groups, width * len(taps), width * len(taps))
