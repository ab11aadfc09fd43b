"""Block pivoted Cholesky of normal equations: what greedy selection of units eliminates, pivot by pivot.

With X|S the residual of X after eliminating the kept columns S, a unit with columns I adds to what S explains

    F(I | S) = tr(C_I|S' (G_II|S)^-1 C_I|S) = tr((G_II|S)^-1 H_II|S),      H = C C'.

So the gains need nothing but the r x r diagonal blocks of G|S and H|S, whatever the number of outputs m.
Eliminating a pivot with rows P = G_I:|S, Q = H_I:|S and G_II|S = K K' subtracts

    G|S+I = G|S - N'N,      H|S+I = H|S - N'T - T'N,      N = K^-1 P,   T = K^-1 Q - 1/2 K^-1 Q_:I K^-T N.

Where the rows of a pivot come from is a matter of storage: from the matrices themselves here, from the rows of the
design matrix in `numerics.row_elimination`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.numerics.solve import attempt, check_finite, factor

TOLERANCE = 1e-10
"""A residual below this fraction of the column's own square is rounding: such a column adds nothing.

H|S is good to about 1e-16 H, so what rounding may pretend to gain is 1e-16 / TOLERANCE of what a column explains alone.
"""


class Part(Protocol):
    """What one consumer (or one of its channel groups) reads of the units to choose from, whatever is stored of it."""

    @property
    def unit(self) -> Tensor:
        """Which unit each column belongs to, (d,), int64."""

    @property
    def energy(self) -> float:
        """||Y||^2: the error with nothing kept."""

    @property
    def scale(self) -> float:
        """Weight of this part's error in the sum."""

    @property
    def alike(self) -> object:
        """Equal for parts that can be eliminated together."""

    def together(self, parts: Sequence[Any]) -> Elimination:
        """The elimination of this and of parts that are alike, `parts` in all."""

    def explained(self, order: Tensor) -> Tensor:
        """F of eq. (2) with the first 0..n units of an order kept and refitted, (n + 1,), float64."""

    def left(self, order: Tensor, weight: Tensor) -> Tensor:
        """||Y - B_S W_S||^2 with the first 0..n units kept at their weights (d, m), (n + 1,), float64."""

    def explained_by(self, columns: Tensor) -> float:
        """F of some columns."""


class Elimination(abc.ABC):
    """Residuals of alike parts, b of them, with n units of r columns left.

    Columns are sorted by unit. A unit with fewer columns than others is padded by columns that are orthogonal to all
    and explain nothing.
    """

    def __init__(self, units: NDArray[np.int64], scale: Tensor, diagonal: Tensor, numerator: Tensor) -> None:
        """Set up.

        Args:
            units: Those that occur, ascending, (n,).
            scale: Weights of the parts' gains, (b,).
            diagonal: G_II by unit, (b, n, r, r).
            numerator: H_II by unit, (b, n, r, r).

        Raises:
            SubpruneError: They hold infinite or undefined entries.
        """
        check_finite(diagonal)
        self._units = torch.from_numpy(units)
        self._where = {int(unit): position for position, unit in enumerate(units)}
        self._scale, self._diagonal, self._numerator, self._r = scale, diagonal, numerator, diagonal.shape[3]
        squares = diagonal.diagonal(dim1=2, dim2=3)
        self._floor = (TOLERANCE * squares).clamp(min=torch.finfo(torch.float32).tiny)

    def add_gains(self, gains: Tensor) -> None:
        """Add every unit's gain to `gains`, (units,)."""
        left = self._diagonal.diagonal(dim1=2, dim2=3) > self._floor
        if self._r == 1:
            ratio = torch.where(left[:, :, 0], self._numerator[:, :, 0, 0] / self._diagonal[:, :, 0, 0], 0.0)
        else:
            root, failed = attempt(self._diagonal + torch.diag_embed(self._floor))
            ratio = torch.where(left.any(2), (torch.cholesky_inverse(root) * self._numerator).sum((2, 3)), 0.0)
            if bool(failed.any()):
                ratio[failed] = _column_by_column(
                    *(of[failed] for of in (self._diagonal, self._numerator, self._floor))
                )
        gains.index_add_(0, self._units, self._scale @ ratio.clamp(min=0))

    def eliminate(self, unit: int) -> None:
        """Make `unit` part of S."""
        if unit not in self._where:
            return
        position, r = self._where[unit], self._r
        own = slice(position * r, position * r + r)
        rows, explained = self._pivot(own)
        # What is left of a dependent column is rounding, and dividing by it would grow with every pivot.
        left = self._diagonal[:, position].diagonal(dim1=1, dim2=2) > self._floor[:, position]
        if not bool(left.all()):
            rows, explained = (found.where(left[:, :, None], 0.0) for found in (rows, explained))
        root = _root(rows[:, :, own].where(left[:, None, :], 0.0), self._floor[:, position].where(left, 1.0))
        n, s = _solved(root, rows), _solved(root, explained)
        t = s - 0.5 * _solved(root, s[:, :, own].mT).mT @ n
        self._diagonal -= self._outer(n, n)
        mixed = self._outer(n, t)
        self._numerator -= mixed + mixed.mT
        self._take(own, root, n, t)

    @abc.abstractmethod
    def _pivot(self, own: slice) -> tuple[Tensor, Tensor]:
        """P and Q of the unit with the columns `own`, (b, r, d) each."""

    @abc.abstractmethod
    def _take(self, own: slice, root: Tensor, n: Tensor, t: Tensor) -> None:
        """Bring what is stored up to date with a pivot, given K, N and T."""

    def _shrink(self, gone: Sequence[int]) -> Tensor:
        """Forget units; the columns that are left."""
        stay = np.setdiff1d(np.arange(len(self._units)), gone)
        index = torch.from_numpy(stay)
        self._diagonal, self._numerator = self._diagonal[:, index], self._numerator[:, index]
        self._floor = self._floor[:, index]
        self._units = self._units[index]
        self._where = {int(unit): position for position, unit in enumerate(self._units.tolist())}
        return torch.from_numpy((stay[:, None] * self._r + np.arange(self._r)).reshape(-1))

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Diagonal blocks of left' right, (b, n, r, r), from (b, r, d)."""
        b, r, _ = left.shape
        if r == 1:
            return (left * right).reshape(b, -1, 1, 1)
        first = left.reshape(b, r, -1, r).permute(0, 2, 3, 1)
        return first @ right.reshape(b, r, -1, r).permute(0, 2, 1, 3)


def _root(pivot: Tensor, floor: Tensor) -> Tensor:
    """K of G_II|S with the floor (b, r) on its diagonal, (b, r, r)."""
    if pivot.shape[2] == 1:
        return (pivot.clamp(min=0) + floor[:, :, None]).sqrt()
    return factor(pivot + torch.diag_embed(floor))


def _solved(root: Tensor, rows: Tensor) -> Tensor:
    """K^-1 P."""
    if root.shape[2] == 1:
        return rows / root
    found: Tensor = torch.linalg.solve_triangular(root, rows, upper=False)
    return found


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


def layout(unit: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units that occur, ascending, (n,), and the columns of each, (n, r); -1 where it has fewer than r."""
    order = np.argsort(unit, kind="stable")
    present, start, counts = np.unique(unit[order], return_index=True, return_counts=True)
    slot = np.arange(unit.size) - np.repeat(start, counts)
    columns = np.full((present.size, counts.max()), -1, dtype=np.int64)
    columns[np.repeat(np.arange(present.size), counts), slot] = order
    return present, columns
