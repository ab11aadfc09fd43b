"""Greedy's elimination on the rows of a design matrix with fewer rows than columns; see `numerics.row_normal`.

With some columns kept, residuals are G|S = X'X + lambda I and C|S = X'E + lambda W_0 for X = R B, E = R (Y - Z W_0).
A pivot with the columns Z of X and K K' = Z'Z + lambda I turns both by a root of I - V V', V = Z K^-T, that is by
I - V (I + L)^-T V' where L L' = I - V'V.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from subprune_fx.numerics.blocks import sorted_columns
from subprune_fx.numerics.cholesky import factor
from subprune_fx.numerics.diagonals import solved
from subprune_fx.numerics.elimination import Elimination, layout
from subprune_fx.numerics.geometry import slices
from subprune_fx.numerics.row_kernels import Kernels

AT_ONCE = 1024
"""Columns whose products with all outputs are in memory at a time."""

PANEL = 64
"""Columns that are eliminated between two updates of all rows."""

MANY = 8
"""Columns of a unit with which products with W_0 take longer than reading it."""

AFTER = 16
"""Once one column in so many has read W_0, reading on would take as long as to set up `Kernels`."""

SPENT = 0.05
"""Share of the units that is gone when what is stored shrinks to the others: copying takes as long as a few pivots."""


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """A `Part` of which the rows are stored; fields as of `RowNormal`, unit and scale as of `Part`."""

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    ridge: float
    unit: Tensor
    scale: float = 1.0
    lost: float = 0.0

    @property
    def energy(self) -> float:
        """See `Part`."""
        return float(self.targets.square().sum()) + self.ridge * squared(self.weight) + self.lost

    @property
    def alike(self) -> object:
        """See `Part`: of those that get by without the outputs, none is."""
        if int(self.unit.bincount().max()) < MANY and Kernels.pay(len(self.targets), self.weight):
            return id(self)
        units = np.sort(self.unit.numpy()).tobytes()
        return units, self.inputs.shape, self.targets.shape, self.weight.dtype

    def together(self, parts: Sequence[RowBlock]) -> Elimination:
        """See `Part`."""
        return RowElimination(parts)

    def explained(self, order: Tensor) -> Tensor:
        """See `Part`."""
        found = torch.zeros(len(order) + 1, dtype=torch.float64)
        left = RowElimination([dataclasses.replace(self, scale=1.0)])
        for k, unit in enumerate(order.tolist()):
            gains = torch.zeros(len(order), dtype=torch.float64)
            left.add_gains(gains)
            found[k + 1] = found[k] + gains[unit]
            left.eliminate(unit)
        return found

    def errors(self, order: Tensor, weight: Tensor) -> Tensor:
        """See `Part`."""
        columns, ends = sorted_columns(self.unit, order)
        lacking, pull = self.targets.clone(), squared(self.weight)
        found = [float(lacking.square().sum()) + self.ridge * pull]
        for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            own = columns[start:stop]
            new, old = weight[own].double(), self.weight[own].double()
            lacking -= self.inputs[own].mT @ new
            pull += float((new - old).square().sum() - old.square().sum())
            found.append(float(lacking.square().sum()) + self.ridge * pull)
        return torch.tensor(found, dtype=torch.float64) + self.lost

    def explained_by(self, columns: Tensor) -> float:
        """See `Part`."""
        chosen = dataclasses.replace(self, inputs=self.inputs[columns], weight=self.weight[columns])
        one = dataclasses.replace(chosen, unit=torch.zeros(len(columns), dtype=torch.int64))
        return float(one.explained(torch.zeros(1, dtype=torch.int64))[1])


class RowElimination(Elimination):
    """From rows that are turned with every pivot.

    What turns have taken from X is kept as a product L' U until it is `PANEL` columns wide: X is large, and reading and
    writing it is what a pivot costs.
    """

    def __init__(self, blocks: Sequence[RowBlock]) -> None:
        layouts = [layout(block.unit.numpy()) for block in blocks]
        flat, r = [torch.from_numpy(columns.reshape(-1)) for _, columns in layouts], layouts[0][1].shape[1]
        self._ridge = torch.tensor([block.ridge for block in blocks], dtype=torch.float64)[:, None, None]
        self._lacking = torch.stack([block.targets for block in blocks])
        self._inputs = torch.stack([_taken(block.inputs, own) for block, own in zip(blocks, flat, strict=True)])
        self._weight = stacked([_taken(block.weight, own) for block, own in zip(blocks, flat, strict=True)])
        rows = self._inputs.reshape(len(blocks), -1, r, self._inputs.shape[2])
        diagonal = rows @ rows.mT + self._ridge[..., None] * torch.eye(r, dtype=torch.float64)
        numerator = torch.cat(list(self._numerators(r)), 1)
        scale = torch.tensor([block.scale for block in blocks], dtype=torch.float64)
        super().__init__(layouts[0][0], scale, diagonal, numerator)
        self._used, self._gone, self._pivots = 0, list[int](), 0
        self._kernels: Kernels | None = None
        self._open_panel()

    def _numerators(self, r: int) -> Iterator[Tensor]:
        """C_I C_I' by unit, (b, some units, r, r) at a time."""
        step = max(1, AT_ONCE // r) * r
        for start in range(0, self._inputs.shape[1], step):
            own = slice(start, start + step)
            cross = self._cross(own, self._inputs[:, own])
            cross = cross.reshape(len(cross), -1, r, cross.shape[2])
            yield cross @ cross.mT

    def _cross(self, own: slice, inputs: Tensor) -> Tensor:
        """C of some columns, (b, some, m), of which X' is `inputs`."""
        return (self._ridge * self._weight[:, own].double()).baddbmm_(inputs, self._lacking)

    def _pivot(self, own: slice) -> tuple[Tensor, Tensor]:
        left, turns, r = self._left[:, : self._used], self._turns[:, : self._used], self._r
        self._chosen = torch.baddbmm(self._inputs[:, own], left[:, :, own].mT, turns, alpha=-1)
        lacking, weights = self._products(own)
        both = torch.cat([self._chosen, lacking], 1)
        products = torch.baddbmm(both @ self._inputs.mT, both @ turns.mT, left, alpha=-1)
        products[:, :r, own].diagonal(dim1=1, dim2=2).add_(self._ridge[:, 0])
        products[:, r:].addcmul_(weights, self._ridge)
        return products[:, :r], products[:, r:]

    def _products(self, own: slice) -> tuple[Tensor, Tensor]:
        """C_I E', (b, r, rows), and C_I W_0', (b, r, d)."""
        if self._kernels is not None:
            lacking, weights = self._kernels.pivot(own, self._chosen[0])
            return lacking[None], weights[None]
        cross = self._cross(own, self._chosen)
        return cross @ self._lacking.mT, cross.to(self._weight.dtype) @ self._weight.mT

    def _take(self, own: slice, root: Tensor, n: Tensor, t: Tensor) -> None:
        del t
        half = solved(root, self._chosen)
        turn = _turn(half)
        if self._kernels is not None:
            self._kernels.take(own, self._chosen[0], turn[0], half[0])
        else:
            self._lacking.baddbmm_(self._chosen.mT, self._weight[:, own].double(), alpha=-1)
            self._lacking.baddbmm_(turn.mT, half @ self._lacking, alpha=-1)
        used = self._used
        self._left[:, used : used + self._r], self._turns[:, used : used + self._r] = n, turn
        self._used = used + self._r
        self._inputs[:, own], self._left[:, : self._used, own] = 0, 0  # what is said of X holds for the others only
        self._gone.append(own.start // self._r)
        if self._used + self._r > self._left.shape[1]:
            self._close_panel()

    def _close_panel(self) -> None:
        """Bring X up to date and, now and then, drop the chosen units from it."""
        left, turns, columns = self._left[:, : self._used], self._turns[:, : self._used], None
        if SPENT * len(self._units) <= len(self._gone) < len(self._units):
            columns = self._shrink(self._gone)
            self._inputs, left, self._gone = self._inputs[:, columns], left[:, :, columns], []
            if self._kernels is None:
                self._weight = self._weight[:, columns]
        self._inputs.baddbmm_(left.mT, turns, alpha=-1)
        self._pivots += self._used
        if self._kernels is not None:
            self._kernels.close(columns)
        elif self._needs_kernels():
            self._kernels = Kernels(self._lacking[0], self._weight[0], float(self._ridge), self._left.shape[1])
        self._open_panel()

    def _needs_kernels(self) -> bool:
        """Whether one part is better off with them; for several at a time there are none."""
        parts, rows, _ = self._lacking.shape
        often = self._r < MANY and AFTER * self._pivots > self._weight.shape[1]
        return parts == 1 and often and Kernels.pay(rows, self._weight[0])

    def _open_panel(self) -> None:
        parts, columns, rows = self._inputs.shape
        width = max(1, PANEL // self._r) * self._r
        self._left = torch.empty(parts, width, columns, dtype=torch.float64)
        self._turns = torch.empty(parts, width, rows, dtype=torch.float64)
        self._used = 0


def _turn(half: Tensor) -> Tensor:
    """(I + L)^-1 V' where L L' = I - V'V, for V' (b, r, rows)."""
    r = half.shape[1]
    rest = torch.eye(r, dtype=half.dtype) - half @ half.mT
    root = rest.clamp(min=0).sqrt() if r == 1 else factor(rest)
    root.diagonal(dim1=1, dim2=2).add_(1)
    return solved(root, half)


def stacked(groups: Sequence[Tensor]) -> Tensor:
    """One tensor of all groups; of the only one no copy, which may be as large as the network."""
    return torch.stack(list(groups)) if len(groups) > 1 else groups[0][None]


def squared(weight: Tensor) -> float:
    """The sum of squares, taken in float64."""
    return sum(float(weight[part].double().square().sum()) for part in slices(len(weight), AT_ONCE))


def outputs(inputs: Tensor, weight: Tensor) -> Tensor:
    """B W, (rows, m), in float64, for B' (d, rows) and weights in any precision."""
    found = inputs.new_zeros(inputs.shape[1], weight.shape[1])
    for part in slices(len(weight), AT_ONCE):
        found.addmm_(inputs[part].mT, weight[part].double())
    return found


def _taken(matrix: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a matrix, zeros where -1; the matrix itself where they are all of it."""
    if len(rows) == len(matrix) and bool((rows == torch.arange(len(rows))).all()):
        return matrix
    found = matrix[rows.clamp(min=0)]
    found[rows < 0] = 0
    return found
