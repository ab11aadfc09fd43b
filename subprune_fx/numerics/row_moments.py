"""Rows of a consumer's input and target, kept where their second moments would be larger than they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.row_elimination import outputs, stacked
from subprune_fx.numerics.row_normal import RowNormal, RowSystem

FEW, FEW_OF_ONE = 1024, 512
"""Columns up to which a Gram matrix costs nothing worth saving: with several a channel, and with one.

Those of several channel groups may be as large together.
"""

MANY = 6144
"""Columns from which a Gram matrix is too large to work with (300 MB, and several of them)."""

WIDE = 12_288
"""The same with one column a channel (1.2 GB): there are as many pivots as columns, and each would read all rows.

Measured at 11,008 columns and 4,096 outputs: 4,096 rows take 158 ms a pivot.
"""

SCARCE, SCARCE_OF_ONE = 8, 16
"""Columns a row up to which, in between, rows are not worth it: they take less room, but greedy more time.

Measured on one thread, from the inputs to the new weights for half of the units. At 4,608 columns of 9 a unit and 512
outputs: 0.9 s with 128 rows instead of 3.9 s, 2.2 with 576, 3.8 with 1,024, 7.3 with 2,048. In 4 groups of 2,376 such
columns and 264 outputs: 1.3 s with 256 rows instead of 3.2 s. At 4,096 columns of one a unit and 1,024 outputs: 1.3 s
with 64 rows instead of 3.7 s, 1.8 with 128, 4.2 with 256, 6.5 with 512.
"""

ROWS = 4096
"""Rows that are enough in place of such a matrix."""

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly: so are rows whose multiple is below a bound, whatever their order."""


def share(columns: int, rows: int, taps: int, groups: int = 1) -> float | None:
    """Which fraction of the rows to keep; None where second moments are the better form.

    Args:
        columns: Of the design matrix, of one channel group.
        rows: Of the design matrix.
        taps: Columns of a channel.
        groups: How many such matrices there are.

    Of a design matrix with fewer rows than columns all rows are kept, which loses nothing. Of one that is too wide for
    second moments and has many rows, a convolution's patches, some are kept in their place.
    """
    narrow, wide, scarce = (FEW, MANY, SCARCE) if taps > 1 else (FEW_OF_ONE, WIDE, SCARCE_OF_ONE)
    if groups * columns**2 <= narrow**2:
        return None
    if columns <= wide:
        return 1.0 if rows <= columns // scarce else None
    return 1.0 if rows <= columns // 2 else min(columns // 2, ROWS) / rows


@dataclasses.dataclass(frozen=True)
class RowMoments:
    """What `Moments` are computed of.

    Attributes:
        inputs: B, transposed, (groups, d, rows).
        share: Fraction of all rows that is kept.
        targets: Y, transposed, in pieces of (groups, m, some rows).
        seen: Rows of targets that came by, kept or not.
        centre: Whether rows count about their means.
    """

    inputs: Tensor
    share: float
    targets: list[Tensor] = dataclasses.field(default_factory=list)
    seen: list[int] = dataclasses.field(default_factory=list)
    centre: bool = False

    @property
    def rows(self) -> int:
        """See `Moments`."""
        return self.inputs.shape[2]

    def only(self, kept: Tensor) -> RowMoments:
        """See `Moments`."""
        return dataclasses.replace(self, inputs=self.inputs[torch.arange(len(kept))[:, None], kept])

    def untargeted(self, targets: int | None = None) -> RowMoments:
        """See `Moments`."""
        del targets
        return dataclasses.replace(self, targets=[], seen=[])

    def add_rows(self, targets: Tensor) -> None:
        """Add targets (groups, m, rows) for the rows that follow."""
        self.targets.append(targets[:, :, picked(sum(self.seen), targets.shape[2], self.share)])
        self.seen.append(targets.shape[2])

    def joined(self, inputs: Sequence[Tensor]) -> RowMoments:
        """With the rows of several processes."""
        return dataclasses.replace(self, inputs=torch.cat(list(inputs), 2) if len(inputs) > 1 else inputs[0])

    def aimed(self, targets: list[Tensor]) -> RowMoments:
        """With the targets of several processes, in the same order."""
        return dataclasses.replace(self, targets=targets)

    def centred(self, *, own: bool = False) -> RowMoments:
        """See `Moments`."""
        del own
        return dataclasses.replace(self, centre=True)

    def means(self) -> RowMoments:
        """See `Moments`."""
        return self

    def mean_diagonal(self) -> Tensor:
        """See `Moments`."""
        return torch.stack([self._about(inputs).square().sum() for inputs in self.inputs]) / self.inputs.shape[1]

    @staticmethod
    def weights(weight: Tensor) -> Tensor:
        """See `Moments`; as they are: they may be the most of the network."""
        return weight

    def normal(self, weight: Tensor, ridge: Tensor, *, own: bool) -> RowNormal:
        """See `Moments`."""
        del own
        groups = zip(self.inputs, torch.cat(self.targets, 2), weight, ridge.tolist(), strict=True)
        return RowNormal(tuple(RowSystem(self._about(x), self._about(y).mT, w, pull) for x, y, w, pull in groups))

    def towards(self, weight: Tensor) -> RowMoments:
        """See `Moments`."""
        found = stacked([outputs(inputs.double(), own).mT for inputs, own in zip(self.inputs, weight, strict=True)])
        return dataclasses.replace(self, targets=[found], seen=[found.shape[2]])

    def intercept(self, weights: Tensor) -> Tensor:
        """See `Moments`."""
        means = self.inputs.mean(2, dtype=torch.float64)[:, :, None]
        held = torch.cat([outputs(mean, own) for mean, own in zip(means, weights, strict=True)])
        return torch.cat(self.targets, 2).mean(2, dtype=torch.float64) - held

    def _about(self, matrix: Tensor) -> Tensor:
        """One group's, float64."""
        matrix = matrix.double()
        return matrix - matrix.mean(1, keepdim=True) if self.centre else matrix


def picked(start: int, count: int, part: float) -> Tensor | slice:
    """Which of some rows are kept, given how many came before."""
    if part >= 1:
        return slice(None)
    return (torch.arange(start, start + count, dtype=torch.float64) * GOLDEN).frac() < part
