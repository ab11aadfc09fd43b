"""Moments from activations, by library kernels that need no design matrix where there are any.

Products are taken about the means of channels, which would else swamp what varies in float32. For a convolution that
pads with zeros the design matrix is then B = B' + mu (x) U: B' reads the deviations, mu holds the means, and U (taps
x positions) is 1 where a tap does not read padding. So what has to be added back are products of sums over samples,
which are small and taken in float64:
    B B' = B' B'' + E + E' + n mu mu' (x) U U',  E = sum(B') U' (x) mu'.
With fewer rows than columns a Gram matrix is singular, and float32's rounding would be all there is of it in most
directions: such rows are few, and are multiplied in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.batched import Batched
from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.geometry import ROWS_AT_ONCE, slices
from subprune_fx.numerics.grams import Gram, gram
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.readers import Reader
from subprune_fx.numerics.row_moments import RowMoments, picked, share

Collected = Moments | RowMoments
"""What is known of a consumer's input: second moments, or rows where they take less room."""


class Collector:
    """Moments of one contraction's input, batch by batch."""

    def __init__(self, reader: Reader, batches: float = 1.0) -> None:
        """Set up.

        Args:
            reader: The contraction's geometry.
            batches: How many batches as large as the first there will be; decides in which form they are summed up.
        """
        self._reader = reader
        self._batches = batches
        self._sums: dict[tuple[int, ...], _Sums] = {}
        self._plain: Moments | None = None
        self._waiting = Batched()
        self._started = self._exact = False
        self._share: float | None = None
        self._rows: list[Tensor] | None = None
        self._seen = 0

    def add(self, x: Tensor) -> None:
        """Add a batch (samples, ...); all samples of a batch have the same size."""
        if not self._started:
            self._started = True
            self._share, self._exact = self._form(x)
        if self._share is not None:
            self._keep_rows(x, self._share)
            return
        if self._exact:
            self._sum(self._waiting.add(self._reader.columns(x.double())))
            return
        plain, convolution = self._reader.plain(x)
        if convolution is None:
            self._sum(self._waiting.add(self._reader.columns(x)))
            return
        size = tuple(plain.shape[1:])
        if size not in self._sums:
            self._sums[size] = _Sums.of(convolution, plain)
        self._sums[size].add(plain)

    def _form(self, x: Tensor) -> tuple[float | None, bool]:
        """Which fraction of the rows to keep, and whether products are to be float64."""
        groups, columns, rows = self._reader.columns(x[:1]).shape
        expected = round(rows * len(x) * self._batches)
        return share(columns, expected, self._reader.taps, groups), expected <= columns

    def _keep_rows(self, x: Tensor, part: float) -> None:
        self._rows = [] if self._rows is None else self._rows
        for some in parts(self._reader, x):
            columns = self._reader.columns(x[some])
            self._rows.append(columns[:, :, picked(self._seen, columns.shape[2], part)].contiguous().cpu())
            self._seen += columns.shape[2]

    def _sum(self, pieces: Sequence[tuple[Tensor, ...]]) -> None:
        for (columns,) in pieces:
            if self._plain is None:
                self._plain = Moments.zeros(columns.shape[0], columns.shape[1], 0)
            self._plain.add(columns)

    def moments(self) -> Collected:
        """The input's moments; targets are yet to be added."""
        if self._rows is not None and self._share is not None:
            return RowMoments(torch.cat(self._rows, 2), self._share)
        self._sum(self._waiting.flush())
        found = [known.moments() for known in self._sums.values()]
        if self._plain is not None:
            return self._plain
        for other in found[1:]:
            found[0].gram += other.gram
            found[0].columns += other.columns
            found[0].rows += other.rows
        return found[0]


@dataclasses.dataclass
class _Sums:
    """Of a convolution's inputs of one size.

    Attributes:
        reader: The convolution, which pads with zeros.
        mean: By channel, (1, channels, 1, ...), as the inputs are.
        gram: Of the deviations from it.
        total: The deviations summed over samples, (1, channels, ...), float64.
        samples: How many.
    """

    reader: ConvReader
    mean: Tensor
    gram: Gram
    total: Tensor
    samples: int = 0

    @staticmethod
    def of(reader: ConvReader, x: Tensor) -> _Sums:
        """None yet; as those of a first batch will be."""
        empty = torch.zeros_like(x[:1], dtype=torch.float64)
        return _Sums(reader, means(x), gram(reader.geometry(x), reader.columns, len(x)), empty)

    def add(self, x: Tensor) -> None:
        """Add a batch."""
        off = x - self.mean
        self.gram.add(off)
        self.total += off.sum(0, keepdim=True)
        self.samples += len(x)

    def moments(self) -> Moments:
        """Of the inputs themselves."""
        groups, n = self.reader.groups, self.samples
        total, mean = self.total.cpu(), self.mean.cpu().double().reshape(groups, -1)
        taps = taps_inside(self.reader, total)
        sums, held = self.reader.columns(total), rows_of_means(mean, taps)
        ends = (sums + n / 2 * held) @ taps.mT
        ends = (ends[:, :, None, :] * mean[:, None, :, None]).reshape(groups, held.shape[1], -1)
        found = self.gram.total().cpu()
        found += ends
        found += ends.mT
        columns = (sums + n * held).sum(2)
        empty = Moments.zeros(groups, 0, 0)
        return dataclasses.replace(
            empty, gram=found, cross=columns.new_zeros(*columns.shape, 0), columns=columns, rows=n * sums.shape[2]
        )


def parts(reader: Reader, x: Tensor) -> Iterator[slice]:
    """Slices of an input's samples, each small enough for sums of its rows in its own precision."""
    return slices(len(x), ROWS_AT_ONCE // max(1, reader.columns(x[:1]).shape[2]))


def means(x: Tensor) -> Tensor:
    """By channel, (1, channels, 1, ...)."""
    return x.mean((0, *range(2, x.ndim)), keepdim=True)


def taps_inside(reader: ConvReader, x: Tensor) -> Tensor:
    """U: by tap and output position, 1 where the tap does not read padding; (taps, positions), float64."""
    one = x.new_ones(1, 1, *x.shape[2:], dtype=torch.float64)
    return dataclasses.replace(reader, groups=1).columns(one)[0]


def rows_of_means(mean: Tensor, inside: Tensor) -> Tensor:
    """Mu (x) U: what the means (groups, channels) add to the design matrix of a sample, (groups, d, positions)."""
    return (mean[:, :, None, None] * inside).reshape(len(mean), -1, inside.shape[1])
