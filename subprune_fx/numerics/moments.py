"""Second moments of a consumer's input and target: all that selection and reweighting ever read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from subprune_fx.numerics.readers import Reader

ELEMENTS_AT_ONCE = 1 << 24
"""Elements of the design matrix that are in memory at a time (64 MiB of float32)."""


@dataclasses.dataclass
class Moments:
    """Sums over rows, per channel group of the contraction; d columns, m targets.

    Attributes:
        gram: B'B, shape (groups, d, d), float64.
        cross: B'Y, shape (groups, d, m), float64.
        columns: Sum of B's rows, shape (groups, d).
        targets: Sum of Y's rows, shape (groups, m).
        energy: Sum of Y squared, shape (groups,).
        rows: How many.
    """

    gram: Tensor
    cross: Tensor
    columns: Tensor
    targets: Tensor
    energy: Tensor
    rows: int

    @staticmethod
    def zeros(groups: int, columns: int, targets: int) -> Moments:
        """No rows yet."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return Moments(
            empty(groups, columns, columns),
            empty(groups, columns, targets),
            empty(groups, columns),
            empty(groups, targets),
            empty(groups),
            0,
        )

    def add(self, columns: Tensor, targets: Tensor | None = None) -> None:
        """Add rows.

        Args:
            columns: Design matrix, transposed: (groups, d, rows), float32 (its products are summed in blocks).
            targets: Targets, transposed: (groups, m, rows); None where only the input's moments are wanted.
        """
        self.gram += _product(columns, columns)
        self.columns += columns.sum(2, dtype=torch.float64)
        self.rows += columns.shape[2]
        if targets is None:
            return
        self.add_targets(columns, targets)

    def only(self, kept: Tensor) -> Moments:
        """Moments of the columns `kept`, (groups, kept d)."""
        rows = torch.arange(len(kept))[:, None]
        return dataclasses.replace(
            self,
            gram=self.gram[rows[:, :, None], kept[:, :, None], kept[:, None, :]],
            cross=self.cross[rows, kept],
            columns=self.columns[rows, kept],
        )

    def untargeted(self) -> Moments:
        """The same input; targets are yet to be added."""
        return dataclasses.replace(
            self,
            cross=torch.zeros_like(self.cross),
            targets=torch.zeros_like(self.targets),
            energy=torch.zeros_like(self.energy),
        )

    def add_targets(self, columns: Tensor, targets: Tensor) -> None:
        """Add targets for rows that are already counted; arguments as in `add`."""
        self.cross += _product(columns, targets)
        self.targets += targets.sum(2, dtype=torch.float64)
        self.energy += targets.double().square().sum((1, 2))

    def centred(self) -> Moments:
        """Moments about the mean: what remains to be explained once an intercept takes the means."""
        mean = self.columns / self.rows
        return Moments(
            self.gram - mean[:, :, None] * self.columns[:, None, :],
            self.cross - mean[:, :, None] * self.targets[:, None, :],
            self.columns,
            self.targets,
            self.energy - self.targets.square().sum(1) / self.rows,
            self.rows,
        )

    def intercept(self, weights: Tensor) -> Tensor:
        """mean(Y) - mean(B) W, shape (groups, m), for `weights` (groups, d, m)."""
        mean = (self.columns / self.rows)[:, None, :] @ weights
        return self.targets / self.rows - mean[:, 0, :]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product left right', (groups, a, b), float64, of (groups, a, rows) and (groups, b, rows).

    Multiplied about the means: where a mean is large against its deviation (a residual stream, outputs of a softplus)
    the float32 products would lose the deviations, and the centred Gram matrix would not be positive.
    """
    if left.shape[2] == 0:
        return left.new_zeros(left.shape[0], left.shape[1], right.shape[1], dtype=torch.float64)
    a, b = left.mean(2, keepdim=True), right.mean(2, keepdim=True)
    off_a = left - a
    off_b = off_a if left is right else right - b
    rest_a, rest_b = (off.sum(2, dtype=torch.float64)[:, :, None] for off in (off_a, off_b))
    a, b = a.double(), b.double()
    return (off_a @ off_b.mT).double() + a @ (rest_b + left.shape[2] * b).mT + rest_a @ b.mT


def accumulate(moments: Moments, reader: Reader, x: Tensor, y: Tensor | None = None) -> None:
    """Add a batch, a few samples at a time so that the design matrix stays small.

    Args:
        moments: To add to.
        reader: The consumer's geometry.
        x: Its input, (samples, ...).
        y: Its target, (samples, ...); None where only the input's moments are wanted.
    """
    for part in parts(reader, x):
        moments.add(reader.columns(x[part]), None if y is None else reader.targets(y[part]))


def parts(reader: Reader, x: Tensor) -> Iterator[slice]:
    """Samples of an input whose design matrix fits into memory at a time."""
    step = max(1, ELEMENTS_AT_ONCE // max(1, reader.taps * x[0].numel()))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))
