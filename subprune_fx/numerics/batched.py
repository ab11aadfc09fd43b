"""Rows that come a few at a time, given on once there are enough of them."""

from __future__ import annotations

import torch
from torch import Tensor

from subprune_fx.numerics.geometry import ROWS_AT_ONCE, slices
from subprune_fx.numerics.grams import ELEMENTS_AT_ONCE

SHARE = 4
"""Rows wait until there is one for so many columns: they then take an eighth of the room of the Gram matrix.

Adding a product of d columns to the sum reads and writes d^2 numbers several times, as long as the product of 600 rows
takes. Of 16,384 samples of 11,008 columns that came 64 at a time, the sums took 203 s instead of 40.
"""


class Batched:
    """Joins batches for a sum of products.

    It gives back what is to be added, and does not add it: one that knew its owner would keep it, and the Gram matrix
    with it, until the garbage collector comes round.
    """

    def __init__(self) -> None:
        """None yet."""
        self._waiting: list[tuple[Tensor, ...]] = []
        self._count = 0

    def add(self, *rows: Tensor) -> list[tuple[Tensor, ...]]:
        """Take tensors (groups, columns, rows) with as many rows each; gives what is worth a sum now, in pieces."""
        self._waiting.append(rows)
        self._count += rows[0].shape[2]
        return self.flush() if self._count >= enough(rows[0].shape[1]) else []

    def flush(self) -> list[tuple[Tensor, ...]]:
        """All that waits, in pieces."""
        if not self._waiting:
            return []
        whole = [torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0] for pieces in zip(*self._waiting, strict=True)]
        self._waiting, self._count = [], 0
        pieces = slices(whole[0].shape[2], most(whole[0].shape[1]))
        return [tuple(rows[:, :, piece] for rows in whole) for piece in pieces]


def enough(columns: int) -> int:
    """Rows that are worth a sum."""
    return columns // SHARE


def most(columns: int) -> int:
    """Rows at a time."""
    return min(ROWS_AT_ONCE, max(ELEMENTS_AT_ONCE // max(1, columns), enough(columns)))
