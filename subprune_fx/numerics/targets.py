"""Products of inputs that are already counted with what they are fitted to, batch by batch.

As in `collect`, a convolution's products are taken about the means of channels, here those of the first samples:
    B Y' = B' Y'' + mu (x) U Y'' + sum(B) (x) nu,   B = B' + mu (x) U,  Y = Y' + nu,
and all but the first term follows from sums over samples, once, at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.batched import Batched
from subprune_fx.numerics.collect import Collected, means, parts, rows_of_means, taps_inside
from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.readers import Reader
from subprune_fx.numerics.row_moments import RowMoments


class Targets:
    """Adds targets to the moments of a contraction's input."""

    def __init__(self, moments: Collected, reader: Reader) -> None:
        """Set up.

        Args:
            moments: Of all inputs, without targets; changed.
            reader: The contraction's geometry.
        """
        self._moments = moments
        self._reader = reader
        self._waiting = Batched()
        self._products: dict[tuple[int, ...], _Products] = {}

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add targets (samples, ...) for inputs (samples, ...), a few samples at a time."""
        if isinstance(self._moments, RowMoments):
            self._moments.add_rows(self._reader.targets(y))
            return
        exact = self._moments.rows <= self._moments.columns.shape[1]
        for part in parts(self._reader, x):
            if exact:
                self._sum(self._waiting.add(*self._rows(x[part].double(), y[part].double())))
                continue
            plain, convolution = self._reader.plain(x[part])
            if convolution is None:
                self._sum(self._waiting.add(*self._rows(x[part], y[part])))
                continue
            size = tuple(plain.shape[1:])
            if size not in self._products:
                self._products[size] = _Products.of(convolution, plain, y[part])
            self._products[size].add(plain, y[part])

    def _rows(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._reader.columns(x), self._reader.targets(y)

    def _sum(self, pieces: Sequence[tuple[Tensor, ...]]) -> None:
        for columns, targets in pieces:
            assert isinstance(self._moments, Moments)
            self._moments.add_targets(columns, targets)

    def moments(self) -> Collected:
        """With the targets of all that was added."""
        self._sum(self._waiting.flush())
        for known in self._products.values():
            assert isinstance(self._moments, Moments)
            known.into(self._moments)
        self._products.clear()
        return self._moments


@dataclasses.dataclass
class _Products:
    """Of a zero-padded convolution's inputs of one size.

    Attributes:
        reader: The convolution.
        mean: What is taken from inputs, by channel, (1, channels, 1, ...).
        shift: What is taken from targets.
        cross: Products of what is left, (groups, d, m), float64.
        total: What is left of the inputs, summed over samples, (1, channels, ...), float64.
        targets: The same of the targets.
        squares: Of what is left of the targets, by channel, float64.
        samples: How many.
    """

    reader: ConvReader
    mean: Tensor
    shift: Tensor
    cross: Tensor
    total: Tensor
    targets: Tensor
    squares: Tensor
    samples: int = 0

    @staticmethod
    def of(reader: ConvReader, x: Tensor, y: Tensor) -> _Products:
        """None yet; as those of first samples will be."""
        total, targets = (torch.zeros_like(value[:1], dtype=torch.float64) for value in (x, y))
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        return _Products(reader, means(x), means(y), zero, total, targets, zero)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add some samples."""
        x, y = x - self.mean, y - self.shift
        self.cross = self.cross + self.reader.cross(x, y).double()
        self.total += x.sum(0, keepdim=True)
        self.targets += y.sum(0, keepdim=True)
        self.squares = self.squares + y.square().sum((0, *range(2, y.ndim))).double()
        self.samples += len(x)

    def into(self, moments: Moments) -> None:
        """Add what the inputs and targets themselves give to `moments`."""
        groups, n, reader = self.reader.groups, self.samples, self.reader
        total, targets = self.total.cpu(), reader.targets(self.targets.cpu())
        mean, shift = (value.cpu().double().reshape(groups, -1) for value in (self.mean, self.shift))
        taps = taps_inside(reader, total)
        columns = (reader.columns(total) + n * rows_of_means(mean, taps)).sum(2)
        held = (mean[:, :, None, None] * (taps @ targets.mT)[:, None]).reshape(*columns.shape, -1)
        moments.cross += self.cross.cpu() + held + columns[:, :, None] * shift[:, None, :]
        rows, squares, off = n * targets.shape[2], self.squares.cpu().reshape(groups, -1).sum(1), targets.sum(2)
        moments.targets += off + rows * shift
        moments.energy += squares + (shift * (2 * off + rows * shift)).sum(1)
