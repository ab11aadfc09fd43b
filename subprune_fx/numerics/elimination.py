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

from subprune_fx.numerics.cholesky import check_finite
from subprune_fx.numerics.diagonals import diagonals


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
        """A key that is equal for parts that can be eliminated together."""

    def together(self, parts: Sequence[Any]) -> Elimination:
        """The elimination of this and of parts that are alike, `parts` in all."""

    def explained(self, order: Tensor) -> Tensor:
        """F of eq. (2) with the first 0..n units of an order kept and refitted, (n + 1,), float64."""

    def errors(self, order: Tensor, weight: Tensor) -> Tensor:
        """||Y - B_S W_S||^2 with the first 0..n units kept, their weights (d, m) as they are, (n + 1,), float64."""

    def explained_by(self, columns: Tensor) -> float:
        """F of eq. (2) with some columns kept and refitted."""


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
        self._scale, self._r = scale, diagonal.shape[3]
        self._diagonals = diagonals(diagonal, numerator)

    def add_gains(self, gains: Tensor) -> None:
        """Add every unit's gain to `gains`, (units,)."""
        gains.index_add_(0, self._units, self._scale @ self._diagonals.gains())

    def eliminate(self, unit: int) -> None:
        """Make `unit` part of S."""
        if unit not in self._where:
            return
        position, r = self._where[unit], self._r
        own = slice(position * r, position * r + r)
        self._take(own, *self._diagonals.pivot(position, *self._pivot(own)))

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
        self._diagonals = self._diagonals.only(index)
        self._units = self._units[index]
        self._where = {int(unit): position for position, unit in enumerate(self._units.tolist())}
        return torch.from_numpy((stay[:, None] * self._r + np.arange(self._r)).reshape(-1))


def layout(unit: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units that occur, ascending, (n,), and the columns of each, (n, r); -1 where it has fewer than r."""
    order = np.argsort(unit, kind="stable")
    present, start, counts = np.unique(unit[order], return_index=True, return_counts=True)
    slot = np.arange(unit.size) - np.repeat(start, counts)
    columns = np.full((present.size, counts.max()), -1, dtype=np.int64)
    columns[np.repeat(np.arange(present.size), counts), slot] = order
    return present, columns
