"""Diagonal blocks of G|S and H|S for b parts of n units: what gains are computed from, and a pivot's K, N and T.

Units of one column, as of every linear layer and 1x1 convolution, need neither factorisations nor solvers.
"""

from __future__ import annotations

import abc
from typing import Self

import torch
from torch import Tensor

from subprune_fx.numerics.cholesky import attempt, factor

TOLERANCE = 1e-10
"""A residual below this fraction of the column's own square is rounding: such a column adds nothing.

H|S is good to about 1e-16 H, so what rounding may pretend to gain is 1e-16 / TOLERANCE of what a column explains alone.
"""


class Diagonals(abc.ABC):
    """Of both matrices, with some units eliminated."""

    def __init__(self, gram: Tensor, explained: Tensor, floor: Tensor) -> None:
        self._gram, self._explained, self._floor = gram, explained, floor

    def only(self, index: Tensor) -> Self:
        """Of some of the units."""
        return type(self)(self._gram[:, index], self._explained[:, index], self._floor[:, index])

    @abc.abstractmethod
    def gains(self) -> Tensor:
        """tr((G_II|S)^-1 H_II|S), (b, n)."""

    @abc.abstractmethod
    def pivot(self, position: int, rows: Tensor, explained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eliminate a unit.

        Args:
            position: Which.
            rows: P of `numerics.elimination`, (b, r, d).
            explained: Q, (b, r, d).

        Returns:
            K (b, r, r), N and T (b, r, d). On K's diagonal, a dependent column has an infinity: what is left of it is
            rounding, and dividing by that would grow with every pivot.
        """


def diagonals(gram: Tensor, explained: Tensor) -> Diagonals:
    """Of nothing eliminated.

    Args:
        gram: G_II by unit, (b, n, r, r), float64.
        explained: H_II by unit, (b, n, r, r), float64.
    """
    floor = (TOLERANCE * gram.diagonal(dim1=2, dim2=3)).clamp(min=torch.finfo(torch.float32).tiny)
    if gram.shape[3] == 1:
        return Columns(*(of.reshape(floor.shape[:2]).clone() for of in (gram, explained, floor)))
    return Squares(gram, explained, floor)


class Columns(Diagonals):
    """Of units of one column each: (b, n)."""

    def gains(self) -> Tensor:
        """See `Diagonals`."""
        return (self._explained / self._gram).masked_fill_(self._gram <= self._floor, 0.0).clamp_(min=0)

    def pivot(self, position: int, rows: Tensor, explained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Diagonals`."""
        p, q, floor = rows[:, 0], explained[:, 0], self._floor[:, position]
        left = self._gram[:, position] > floor
        root = torch.where(left, (p[:, position].clamp(min=0) + floor).sqrt_(), torch.inf)[:, None]
        n, s = p / root, q / root
        t = torch.addcmul(s, s[:, position, None] / root, n, value=-0.5)
        self._gram.addcmul_(n, n, value=-1)
        self._explained.addcmul_(n, t, value=-2)
        return root[:, None], n[:, None], t[:, None]


class Squares(Diagonals):
    """Of units of r columns each: (b, n, r, r)."""

    def gains(self) -> Tensor:
        """See `Diagonals`."""
        left = self._gram.diagonal(dim1=2, dim2=3) > self._floor
        root, failed = attempt(self._gram + torch.diag_embed(self._floor))
        found = torch.where(left.any(2), (torch.cholesky_inverse(root) * self._explained).sum((2, 3)), 0.0)
        if bool(failed.any()):
            found[failed] = _column_by_column(*(of[failed] for of in (self._gram, self._explained, self._floor)))
        return found.clamp_(min=0)

    def pivot(self, position: int, rows: Tensor, explained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Diagonals`."""
        r, floor = rows.shape[1], self._floor[:, position]
        own = slice(position * r, position * r + r)
        left = self._gram[:, position].diagonal(dim1=1, dim2=2) > floor
        pivot = rows[:, :, own]
        if not bool(left.all()):
            pivot = pivot.where(left[:, :, None] & left[:, None, :], 0.0)
        root = factor(pivot + torch.diag_embed(floor))
        root.diagonal(dim1=1, dim2=2).masked_fill_(~left, torch.inf)
        n, s = solved(root, rows), solved(root, explained)
        t = s - 0.5 * solved(root, s[:, :, own].mT).mT @ n
        self._gram -= _blocks(n, n)
        mixed = _blocks(n, t)
        self._explained -= mixed + mixed.mT
        return root, n, t


def solved(root: Tensor, rows: Tensor) -> Tensor:
    """K^-1 P, of K (..., r, r) and P (..., r, d)."""
    if root.shape[-1] == 1:
        return rows / root
    found: Tensor = torch.linalg.solve_triangular(root, rows, upper=False)
    return found


def _blocks(left: Tensor, right: Tensor) -> Tensor:
    """Diagonal blocks of left' right, (b, n, r, r), from (b, r, d)."""
    b, r, _ = left.shape
    return left.reshape(b, r, -1, r).permute(0, 2, 3, 1) @ right.reshape(b, r, -1, r).permute(0, 2, 1, 3)


def _column_by_column(diagonal: Tensor, numerator: Tensor, floor: Tensor) -> Tensor:
    """tr(G^-1 H) over the columns that do not depend on those before them, (some,).

    Args:
        diagonal: G, (some, r, r); indefinite where rounding is all that is left of some direction.
        numerator: H, (some, r, r).
        floor: What of a column's square is rounding, (some, r).
    """
    g, h, found = diagonal.clone(), numerator.clone(), numerator.new_zeros(len(numerator))
    for j in range(g.shape[1]):
        pivot, after = g[:, j, j], slice(j + 1, None)
        inverse = torch.where(pivot > floor[:, j], 1 / pivot, 0.0)
        found += h[:, j, j] * inverse
        n = g[:, after, j] * inverse[:, None]
        t = h[:, after, j] - 0.5 * h[:, j, j, None] * n
        g[:, after, after] -= n[:, :, None] * g[:, j, None, after]
        h[:, after, after] -= n[:, :, None] * t[:, None] + t[:, :, None] * n[:, None]
    return found
