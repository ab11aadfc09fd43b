"""How a contraction reads its input: activations to design-matrix columns, weights to matrices and back.

Every contraction is y = B W per group, with B (rows: samples x positions; columns: input channel x kernel offset).
Matrices come transposed, (groups, columns, rows), since that is the layout one copy produces and a Gram product reads.
Here are the interface and linear layers; `conv_reader`, `transposed_reader`, `stacked_reader` and `thinned_reader` have
the others.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from subprune_fx.numerics.conv_reader import ConvReader


class Reader(Protocol):
    """One contraction's geometry."""

    @property
    def groups(self) -> int:
        """Independent blocks of channels (1 unless a grouped convolution)."""

    @property
    def taps(self) -> int:
        """Columns per input channel: the kernel's size."""

    def columns(self, x: Tensor) -> Tensor:
        """Design matrix of an activation, transposed: (groups, inputs / groups * taps, rows)."""

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """The same contraction as a convolution that pads with zeros, if it is one, and what that reads."""

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """B'Y for an input and an output activation, (groups, inputs / groups * taps, outputs / groups)."""

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """B W as an output activation, for an input and a `matrix`."""

    def read(self, y: Tensor) -> Tensor:
        """Of an output activation, the positions that rows stand for: all, but for a `ThinnedReader`."""

    def targets(self, y: Tensor) -> Tensor:
        """Output activation at those positions, rows as in `columns`: (groups, outputs / groups, rows)."""

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight as (groups, inputs / groups * taps, outputs / groups)."""

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Inverse of `matrix`; kernel sizes and layout as in `like`."""


@dataclasses.dataclass(frozen=True)
class LinearReader:
    """y = x W', as a linear layer or a product with a matrix.

    Attributes:
        transposed: Whether the weight is stored (inputs, outputs).
        groups: See `Reader`.
        taps: See `Reader`.
        axis: Dimension of x that is summed over.
        made: Dimension of y that takes its place.
    """

    transposed: bool = False
    groups: int = 1
    taps: int = 1
    axis: int = -1
    made: int = -1

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return _last(x, self.axis)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        return x, None

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self.columns(x) @ self.targets(y).mT

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        return (x.movedim(self.axis, -1) @ matrix[0]).movedim(-1, self.made)

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return _last(y, self.made)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        return (weight if self.transposed else weight.t())[None]

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        del like
        return (matrix[0] if self.transposed else matrix[0].t()).contiguous()


def _last(tensor: Tensor, axis: int) -> Tensor:
    """(1, size of `axis`, everything else)."""
    return tensor.movedim(axis, -1).reshape(1, -1, tensor.shape[axis]).transpose(1, 2)
