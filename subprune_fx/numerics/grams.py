"""Gram matrices of what convolutions read, summed over batches: three ways, equal up to rounding; the cheapest is used.

For taps p and q of the kernel and input channels c and c', G[(c, p), (c', q)] sums x[c, u_p(o)] x[c', u_q(o)] over
samples and outputs o.
    Patches: the design matrix itself, a few samples at a time, times its transpose.
    Shifts:  u_q(o) - u_p(o) depends on q - p alone, so correlations of x with itself, shifted, on a few rectangles
             are all there is to compute: 15 instead of 81 products of channels for 3 x 3. A convolution's weight
             gradient is such a correlation, and libraries compute it without a design matrix.
    Dense:   of maps smaller than the kernel, all products of two positions, then sums over o.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from subprune_fx.numerics.dense import Dense
from subprune_fx.numerics.geometry import ROWS_AT_ONCE, Geometry, slices
from subprune_fx.numerics.shifts import Shifts
from subprune_fx.numerics.symmetric import product

ELEMENTS_AT_ONCE = 1 << 22
"""Elements of the design matrix that are in memory at a time (16 MiB of float32)."""

COPY = 60
"""What an element of the design matrix costs, in multiply-adds of a matrix product."""


class Gram(Protocol):
    """B'B of a convolution, summed over batches."""

    def add(self, x: Tensor) -> None:
        """Add the activations (samples, channels, ...) of a batch."""

    def total(self) -> Tensor:
        """(groups, d, d), float64."""


class Patches:
    """From the design matrix."""

    def __init__(self, columns: Callable[[Tensor], Tensor]) -> None:
        """Args: columns: Design matrix of an activation, transposed: (groups, d, rows)."""
        self._columns = columns
        self._sum: Tensor | None = None

    @staticmethod
    def cost(geometry: Geometry, samples: int) -> float:
        """Multiply-adds."""
        d = geometry.width * math.prod(geometry.kernel)
        return samples * geometry.outputs * geometry.groups * d * (d + COPY)

    def add(self, x: Tensor) -> None:
        """See `Gram`."""
        _, d, rows = self._columns(x[:1]).shape
        for part in slices(len(x), min(ROWS_AT_ONCE, ELEMENTS_AT_ONCE // max(1, d)) // max(1, rows)):
            columns = self._columns(x[part])
            found = product(columns).double()
            self._sum = found if self._sum is None else self._sum.add_(found)

    def total(self) -> Tensor:
        """See `Gram`."""
        assert self._sum is not None
        return self._sum


def gram(geometry: Geometry | None, columns: Callable[[Tensor], Tensor], samples: int) -> Gram:
    """The cheapest way for an input of that many samples.

    Args:
        geometry: None where there is only the design matrix.
        columns: Design matrix of an activation, transposed.
        samples: In a batch.
    """
    if geometry is None or math.prod(geometry.kernel) == 1:
        return Patches(columns)
    ways: dict[float, Callable[[], Gram]] = {
        Patches.cost(geometry, samples): lambda: Patches(columns),
        Shifts.cost(geometry, samples): lambda: Shifts(geometry),
        Dense.cost(geometry, samples): lambda: Dense(geometry),
    }
    return ways[min(ways)]()
