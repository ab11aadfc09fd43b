"""A product with a stack of matrices, one for each expert, or head, or position."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from subprune_fx.numerics.conv_reader import ConvReader


@dataclasses.dataclass(frozen=True)
class StackedReader:
    """y[.., e, .., m] = sum over d of x[.., e, .., d] W_e[d, m]. Dimensions count from the last, of x and y alike.

    Attributes:
        order: Dimensions of the weight that are (e, d, m).
        groups: How many matrices.
        blocks: Dimension of x and of y that says which of them.
        axis: Dimension of x that is summed over, and of y that takes its place.
        taps: See `Reader`.
    """

    order: tuple[int, int, int]
    groups: int
    blocks: tuple[int, int]
    axis: tuple[int, int]
    taps: int = 1

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return self._rows(x, 0)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        return x, None

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self.columns(x) @ self.targets(y).mT

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        made = x.movedim((self.blocks[0], self.axis[0]), (-3, -1)) @ matrix
        return made.movedim((-3, -1), (self.blocks[1], self.axis[1]))

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self._rows(y, 1)

    def _rows(self, value: Tensor, side: int) -> Tensor:
        """(matrices, size of the axis, everything else)."""
        moved = value.movedim((self.blocks[side], self.axis[side]), (0, 1))
        return moved.reshape(*moved.shape[:2], -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        return weight.permute(self.order)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        del like
        places = [self.order.index(axis) for axis in range(3)]
        return matrix.permute(places).contiguous()
