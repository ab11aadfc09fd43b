"""A consumer's normal equations stored as matrices, and their elimination.

The rows of a pivot are corrected for the pivots of the current panel on demand; the matrices themselves are
updated once a panel, by matrix products, and shrink to the units that are left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.numerics.cholesky import factor
from subprune_fx.numerics.elimination import Elimination, layout
from subprune_fx.numerics.symmetric import Symmetric, squared

PANEL = 128
"""Columns that are eliminated between two updates of the whole matrices."""

SPENT = 0.15
"""Share of the units that is gone when the matrices shrink to the others: copying them takes as long as an update."""


@dataclasses.dataclass(frozen=True)
class Block:
    """What one consumer (or one of its channel groups) reads of the units to choose from.

    Attributes:
        gram: B'B, (d, d), float64.
        cross: B'Y, (d, m), float64.
        unit: Which unit each column belongs to, (d,), int64.
        energy: ||Y||^2: the error with nothing kept.
        scale: Weight of this block's error in the sum.
    """

    gram: Tensor
    cross: Tensor
    unit: Tensor
    energy: float
    scale: float = 1.0

    @property
    def alike(self) -> object:
        """See `Part`."""
        return np.sort(self.unit.numpy()).tobytes()

    def together(self, parts: Sequence[Block]) -> Elimination:
        """See `Part`."""
        return GramElimination(parts)

    def explained(self, order: Tensor) -> Tensor:
        """See `Part`.

        With G = L L' in the order's own order, F(S) is the sum of squares of the first rows of L^-1 C: one
        factorisation gives all prefixes.
        """
        columns, ends = sorted_columns(self.unit, order)
        root = factor(self.gram[columns[:, None], columns])
        return until(torch.linalg.solve_triangular(root, self.cross[columns], upper=False).square().sum(1), ends)

    def errors(self, order: Tensor, weight: Tensor) -> Tensor:
        """See `Part`."""
        columns, ends = sorted_columns(self.unit, order)
        own = weight[columns].double()
        explained = until((own * self.cross[columns]).sum(1), ends)
        products = self.gram[columns[:, None], columns] * (own @ own.mT)
        inner = products.cumsum(0).cumsum(1).diagonal()
        return self.energy - 2 * explained + torch.cat([inner.new_zeros(1), inner])[ends]

    def explained_by(self, columns: Tensor) -> float:
        """See `Part`."""
        gram, cross = self.gram, self.cross
        if len(columns) < len(gram):
            gram, cross = gram[columns[:, None], columns], cross[columns]
        return float(torch.linalg.solve_triangular(factor(gram), cross, upper=False).square().sum())


class GramElimination(Elimination):
    """From the matrices G and H."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        layouts = [layout(block.unit.numpy()) for block in blocks]
        present, self._r = layouts[0][0], layouts[0][1].shape[1]
        self._used, self._gone = 0, list[int]()
        gram, explained = _stacked(blocks, [columns for _, columns in layouts])
        self._gram, self._explained = Symmetric(gram, self._r), Symmetric(explained, self._r)
        scale = torch.tensor([block.scale for block in blocks], dtype=torch.float64)
        super().__init__(present, scale, self._gram.squares(), self._explained.squares())
        self._open_panel(*gram.shape[:2])

    def _pivot(self, own: slice) -> tuple[Tensor, Tensor]:
        left, right = self._left[:, : self._used], self._right[:, : self._used]
        both, r = torch.cat([left[:, :, own], right[:, :, own]], 2).mT @ left, self._r
        explained = torch.baddbmm(self._explained.rows(own), left[:, :, own].mT, right, alpha=-1)
        return self._gram.rows(own) - both[:, :r], explained.sub_(both[:, r:])

    def _take(self, own: slice, root: Tensor, n: Tensor, t: Tensor) -> None:
        del root
        used, r = self._used, self._r
        self._left[:, used : used + r], self._right[:, used : used + r] = n, t
        self._used = used + r
        self._gone.append(own.start // r)
        if self._used + r > self._left.shape[1]:
            self._close_panel()

    def _close_panel(self) -> None:
        """Bring the matrices up to date and, now and then, drop the chosen units from them."""
        if len(self._gone) == len(self._units):
            return
        panel = self._panel
        if len(self._gone) >= SPENT * len(self._units):
            columns = self._shrink(self._gone)
            panel = panel[:, :, columns]
            self._gram, self._explained = self._gram.only(columns), self._explained.only(columns)
            self._gone = []
        left, right = panel.chunk(2, 1)
        self._gram.subtract(left, left)
        self._explained.subtract(panel, torch.cat([right, left], 1))
        self._open_panel(len(panel), panel.shape[2])

    def _open_panel(self, blocks: int, columns: int) -> None:
        width = min(columns, max(self._r, PANEL // self._r * self._r))
        self._panel = torch.empty(blocks, 2 * width, columns, dtype=torch.float64)
        self._left, self._right = self._panel.chunk(2, 1)
        self._used = 0


def sorted_columns(unit: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in the order of their units, and how many belong to the first 0..n of them."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    columns = torch.argsort(rank[unit], stable=True)
    counts = torch.bincount(rank[unit], minlength=len(order))
    return columns, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def until(values: Tensor, ends: Tensor) -> Tensor:
    """Sums of the first ends[k] values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])[ends]


def _stacked(blocks: Sequence[Block], columns: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """What `_padded` gives of each, (b, d, d); one by one, as they may be large."""
    if len(blocks) == 1:
        gram, squares = _padded(blocks[0], columns[0])
        return gram[None], squares[None]
    grams = torch.empty(len(blocks), columns[0].size, columns[0].size, dtype=torch.float64)
    explained = torch.empty_like(grams)
    for number, (block, own) in enumerate(zip(blocks, columns, strict=True)):
        grams[number], explained[number] = _padded(block, own)
    return grams, explained


def _padded(block: Block, columns: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """G and C C' with their columns sorted by unit."""
    flat = torch.from_numpy(columns.reshape(-1))
    if bool((flat >= 0).all()):
        gram, cross = block.gram[flat[:, None], flat], block.cross[flat]
        return gram, squared(cross, columns.shape[1])
    real = flat >= 0
    d = len(flat)
    gram = torch.eye(d, dtype=torch.float64) * block.gram.diagonal().max()
    cross = torch.zeros(d, block.cross.shape[1], dtype=torch.float64)
    where = real.nonzero()[:, 0]
    gram[where[:, None], where] = block.gram[flat[real][:, None], flat[real]]
    cross[where] = block.cross[flat[real]]
    return gram, squared(cross, columns.shape[1])
