"""Greedy selection of units as a block pivoted Cholesky (paper Prop. 3.2 and B.7 in Gram form).

For a consumer with normal equations G = B'B, C = B'Y, keeping the columns S explains

    F(S) = tr(C_S' G_SS^-1 C_S)                                            (paper eq. 2)

and a unit with columns I adds, with X|S the residual of X after eliminating S,

    F(I | S) = tr(C_I|S' (G_II|S)^-1 C_I|S) = tr((G_II|S)^-1 H_II|S),      H = C C'.

So the gains need nothing but the r x r diagonal blocks of G|S and H|S, whatever the number of outputs m.
Eliminating a pivot with rows P = G_I:|S, Q = H_I:|S and G_II|S = K K' subtracts

    G|S+I = G|S - N'N,      H|S+I = H|S - N'T - T'N,      N = K^-1 P,   T = K^-1 Q - 1/2 K^-1 Q_:I K^-T N.

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

from subprune_fx.numerics.solve import factor

PANEL = 384
"""Columns that are eliminated between two updates of the whole matrices."""

TOLERANCE = 1e-10
"""A residual below this fraction of the column's own square is rounding: such a column adds nothing.

H|S is good to about 1e-16 H, so what rounding may pretend to gain is 1e-16 / TOLERANCE of what a column explains alone.
"""


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


@dataclasses.dataclass(frozen=True)
class Selection:
    """One greedy run.

    Attributes:
        order: Units in the order they were chosen, (k,), int64.
        error: sum_c scale_c (energy_c - F_c(S)) with the first 0..k of them kept, (k + 1,), float64, non-increasing.
        gains: Sum of the gains F(i | S) of all units not in S, with the first 0..k - 1 kept, (k,), float64.
    """

    order: Tensor
    error: Tensor
    gains: Tensor


def greedy(
    blocks: Sequence[Block],
    units: int,
    *,
    stop: int | None = None,
    epsilon: float | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """Choose units one by one, each time the one that lowers the summed error most (paper Algorithm 1).

    Args:
        blocks: What the consumers read.
        units: How many units there are.
        stop: How many to choose; None for all.
        epsilon: Consider only a random sample of units/stop * log(1/epsilon) candidates at each step (stochastic
            greedy, paper App. B.3); None considers all.
        generator: Source of those samples.

    Returns:
        The nested order and its error curve.
    """
    count = units if stop is None else min(stop, units)
    factors = [_Elimination(members) for members in _stacked(blocks)]
    size = units if epsilon is None else max(1, int(np.ceil(units / max(count, 1) * np.log(1 / epsilon))))
    open_ = torch.ones(units, dtype=torch.bool)
    error = [sum(block.scale * block.energy for block in blocks)]
    order: list[int] = []
    sums: list[float] = []
    for _ in range(count):
        gains = torch.zeros(units, dtype=torch.float64)
        for part in factors:
            part.add_gains(gains)
        sums.append(float(gains[open_].sum()))
        gains[~open_] = -torch.inf
        if size < units:
            candidates = open_.nonzero()[:, 0]
            sample = candidates[torch.randperm(len(candidates), generator=generator)[:size]]
            best = int(sample[gains[sample].argmax()])
        else:
            best = int(gains.argmax())
        for part in factors:
            part.eliminate(best)
        open_[best] = False
        order.append(best)
        error.append(min(error[-1], max(error[-1] - float(gains[best]), 0.0)))
    curves = (torch.tensor(values, dtype=torch.float64) for values in (error, sums))
    return Selection(torch.tensor(order, dtype=torch.int64), *curves)


def _stacked(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that read the same units in the same number of columns, to be eliminated together."""
    alike: dict[bytes, list[Block]] = {}
    for block in blocks:
        alike.setdefault(np.sort(block.unit.numpy()).tobytes(), []).append(block)
    return list(alike.values())


class _Elimination:
    """Residual Gram matrices of alike blocks, b of them, with n units of r columns left.

    Columns are sorted by unit. A unit with fewer columns than others is padded by columns that are orthogonal to all
    and explain nothing.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        layouts = [_layout(block.unit.numpy()) for block in blocks]
        present, self._r = layouts[0][0], layouts[0][1].shape[1]
        self._units = torch.from_numpy(present)
        self._where = {int(unit): position for position, unit in enumerate(present)}
        grams, explained = zip(
            *(_padded(block, columns) for block, (_, columns) in zip(blocks, layouts, strict=True)),
            strict=True,
        )
        self._gram, self._explained = torch.stack(grams), torch.stack(explained)
        self._scale = torch.tensor([block.scale for block in blocks], dtype=torch.float64)
        self._diagonal, self._numerator = self._squares(self._gram), self._squares(self._explained)
        squares = self._gram.diagonal(dim1=1, dim2=2).reshape(len(blocks), -1, self._r)
        self._floor = (TOLERANCE * squares).clamp(min=torch.finfo(torch.float32).tiny)
        self._used = 0
        self._open_panel()

    def add_gains(self, gains: Tensor) -> None:
        """Add every unit's gain to `gains`, (units,)."""
        left = self._diagonal.diagonal(dim1=2, dim2=3) > self._floor
        if self._r == 1:
            ratio = torch.where(left[:, :, 0], self._numerator[:, :, 0, 0] / self._diagonal[:, :, 0, 0], 0.0)
        else:
            inverse = torch.cholesky_inverse(factor(self._diagonal + torch.diag_embed(self._floor)))
            ratio = torch.where(left.any(2), (inverse * self._numerator).sum((2, 3)), 0.0)
        gains.index_add_(0, self._units, self._scale @ ratio.clamp(min=0))

    def eliminate(self, unit: int) -> None:
        """Make `unit` part of S."""
        if unit not in self._where:
            return
        position, r = self._where[unit], self._r
        own = slice(position * r, position * r + r)
        used = self._used
        left, right = self._left[:, :used], self._right[:, :used]
        rows = self._gram[:, own] - left[:, :, own].mT @ left
        explained = self._explained[:, own] - left[:, :, own].mT @ right - right[:, :, own].mT @ left
        corner = rows[:, :, own] + torch.diag_embed(self._floor[:, position])
        root = factor(corner)
        n = torch.linalg.solve_triangular(root, rows, upper=False)
        s = torch.linalg.solve_triangular(root, explained, upper=False)
        t = s - 0.5 * torch.linalg.solve_triangular(root, s[:, :, own].mT, upper=False).mT @ n
        self._left[:, used : used + r], self._right[:, used : used + r] = n, t
        self._used = used + r
        self._gone.append(position)
        self._diagonal -= self._outer(n, n)
        mixed = self._outer(n, t)
        self._numerator -= mixed + mixed.mT
        if self._used + r > self._left.shape[1]:
            self._close_panel()

    def _close_panel(self) -> None:
        """Bring the matrices up to date and drop the chosen units from them."""
        r = self._r
        left, right = self._left[:, : self._used], self._right[:, : self._used]
        stay = np.setdiff1d(np.arange(len(self._units)), self._gone)
        if stay.size == 0:
            return
        columns = torch.from_numpy((stay[:, None] * r + np.arange(r)).reshape(-1))
        index = torch.from_numpy(stay)
        left, right = left[:, :, columns], right[:, :, columns]
        self._gram = self._gram[:, columns][:, :, columns].baddbmm_(left.mT, left, alpha=-1)
        explained = self._explained[:, columns][:, :, columns]
        self._explained = explained.baddbmm_(left.mT, right, alpha=-1).baddbmm_(right.mT, left, alpha=-1)
        self._diagonal, self._numerator = self._diagonal[:, index], self._numerator[:, index]
        self._floor = self._floor[:, index]
        self._units = self._units[index]
        self._where = {int(unit): position for position, unit in enumerate(self._units.tolist())}
        self._open_panel()

    def _open_panel(self) -> None:
        blocks, d = self._gram.shape[:2]
        width = min(d, max(self._r, PANEL // self._r * self._r))
        self._left = torch.empty(blocks, width, d, dtype=torch.float64)
        self._right = torch.empty(blocks, width, d, dtype=torch.float64)
        self._used = 0
        self._gone: list[int] = []

    def _squares(self, matrix: Tensor) -> Tensor:
        """The r x r diagonal blocks, (b, n, r, r)."""
        b, d = matrix.shape[:2]
        parts = matrix.reshape(b, d // self._r, self._r, d // self._r, self._r)
        return parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Diagonal blocks of left' right, (b, n, r, r), from (b, r, d)."""
        b, r, _ = left.shape
        if r == 1:
            return (left * right).reshape(b, -1, 1, 1)
        first = left.reshape(b, r, -1, r).permute(0, 2, 3, 1)
        return first @ right.reshape(b, r, -1, r).permute(0, 2, 1, 3)


def _layout(unit: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units that occur, ascending, (n,), and the columns of each, (n, r); -1 where it has fewer than r."""
    order = np.argsort(unit, kind="stable")
    present, start, counts = np.unique(unit[order], return_index=True, return_counts=True)
    slot = np.arange(unit.size) - np.repeat(start, counts)
    columns = np.full((present.size, counts.max()), -1, dtype=np.int64)
    columns[np.repeat(np.arange(present.size), counts), slot] = order
    return present, columns


def _padded(block: Block, columns: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """G and C C' with their columns sorted by unit."""
    flat = torch.from_numpy(columns.reshape(-1))
    if bool((flat >= 0).all()):
        gram, cross = block.gram[flat][:, flat], block.cross[flat]
        return gram, cross @ cross.mT
    real = flat >= 0
    d = len(flat)
    gram = torch.eye(d, dtype=torch.float64) * block.gram.diagonal().max()
    cross = torch.zeros(d, block.cross.shape[1], dtype=torch.float64)
    where = real.nonzero()[:, 0]
    gram[where[:, None], where] = block.gram[flat[real]][:, flat[real]]
    cross[where] = block.cross[flat[real]]
    return gram, cross @ cross.mT
