"""Pivots of `numerics.row_elimination` without the outputs: E and W_0 enter by their products alone.

For C = X'E + lambda W_0, whose rows have as many entries as there are outputs, a pivot I needs

    C_I E'   = x_I' E E' + lambda (E W_0')_I',
    C_I W_0' = x_I' E W_0' + lambda (W_0 W_0')_I.

Where there are few rows, E E' is small, and E W_0' as small as X. A pivot turns E <- (I - t'h) (E - x'w). For E E' that
is done at once; for E W_0' the pivots of a panel wait, as

    E W_0' = M F - Y (W_0 W_0')_panel,    M = I - T'Z,    F: E W_0' when the panel was opened.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subprune_fx.numerics.geometry import slices

AT_ONCE = 1024
"""Columns of W_0 that are in float64 at a time."""

WIDER = 4
"""How many times the room of W_0 its products with itself may take."""

SHORTER = 4
"""How many times as many outputs as rows there are at least."""


class Kernels:
    """E E', E W_0' and W_0 W_0' with some columns eliminated."""

    def __init__(self, lacking: Tensor, weight: Tensor, ridge: float, panel: int) -> None:
        """Set up.

        Args:
            lacking: E, (rows, m), float64.
            weight: W_0 of the columns that are left, (d, m).
            ridge: lambda.
            panel: How many columns are eliminated before `close` at most.
        """
        self._ridge, self._panel = ridge, panel
        self._weights, self._left = weight @ weight.mT, torch.arange(len(weight))
        self._mixed = torch.cat([lacking @ weight[part].double().mT for part in slices(len(weight), AT_ONCE)], 1)
        self._lacking = lacking @ lacking.mT
        self._open()

    @staticmethod
    def pay(rows: int, weight: Tensor) -> bool:
        """Whether they are smaller than what they stand for, for so many rows and W_0, (d, m)."""
        columns, outputs = weight.shape
        return SHORTER * rows <= outputs and columns <= WIDER * outputs

    def pivot(self, own: slice, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """C_I E', (r, rows), and C_I W_0', (r, d), of the columns I = `own` whose x_I' is `chosen`, (r, rows)."""
        used = self._used
        turns, halves, taken = self._turns[:used], self._halves[:used], self._taken[:used]
        kept = self._mixed[:, own]
        self._own = (kept - turns.mT @ (halves @ kept) - taken.mT @ self._outers[:used, own]).mT
        self._outer = self._weights[self._left[own]][:, self._left].double()
        lacking = torch.addmm(self._own, chosen, self._lacking, beta=self._ridge)
        turned = torch.addmm(chosen, chosen @ turns.mT, halves, alpha=-1)
        weights = torch.addmm(self._outer, turned, self._mixed, beta=self._ridge)
        return lacking, weights.addmm_(chosen @ taken.mT, self._outers[:used], alpha=-1)

    def take(self, own: slice, chosen: Tensor, turn: Tensor, half: Tensor) -> None:
        """Bring everything up to date with the pivot of the last call: x', t and h, (r, rows) each."""
        start = self._used
        self._used += len(turn)
        new, old = slice(start, self._used), slice(0, start)
        self._halves[new] = torch.addmm(half, half @ self._turns[old].mT, self._halves[old], alpha=-1)
        self._turns[new], self._taken[new], self._outers[new] = turn, chosen, self._outer
        taken = self._taken[: self._used]
        taken.addmm_(taken @ half.mT, turn, alpha=-1)
        self._lacking -= _both(chosen.mT @ (self._own - 0.5 * self._outer[:, own] @ chosen))
        turned = half @ self._lacking
        self._lacking -= _both(turn.mT @ (turned - 0.5 * (turned @ half.mT) @ turn))

    def close(self, left: Tensor | None) -> None:
        """End a panel; `left`: the columns that stay, None for all."""
        used = self._used
        self._mixed.addmm_(self._turns[:used].mT, self._halves[:used] @ self._mixed, alpha=-1)
        self._mixed.addmm_(self._taken[:used].mT, self._outers[:used], alpha=-1)
        if left is not None:
            self._mixed, self._left = self._mixed[:, left], self._left[left]
        self._open()

    def _open(self) -> None:
        rows, columns = self._mixed.shape
        self._turns, self._halves, self._taken = self._mixed.new_empty(3, self._panel, rows)
        self._outers = self._mixed.new_empty(self._panel, columns)
        self._used = 0


def _both(half: Tensor) -> Tensor:
    """What is symmetric, from a half of it."""
    return half + half.mT
