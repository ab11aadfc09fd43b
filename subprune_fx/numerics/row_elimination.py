"""Greedy's elimination on the rows of a design matrix with fewer rows than columns; see `numerics.row_normal`.

With some columns kept, residuals are G|S = X'X + lambda I and C|S = X'E + lambda W_0 for X = R B, E = R (Y - Z W_0).
A pivot with the columns Z of X and K K' = Z'Z + lambda I turns both by the symmetric root of I - V V', V = Z K^-T: by
I - V U diag(b) U' V' where V'V = U diag(s) U' and b = 1 / (1 + sqrt(1 - s)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.blocks import sorted_columns
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
        """See `Part`: none is."""
        return id(self)

    def together(self, parts: Sequence[RowBlock]) -> Elimination:
        """See `Part`."""
        (part,) = parts
        return RowElimination(part)

    def explained(self, order: Tensor) -> Tensor:
        """See `Part`."""
        found = torch.zeros(len(order) + 1, dtype=torch.float64)
        left = RowElimination(dataclasses.replace(self, scale=1.0))
        for k, unit in enumerate(order.tolist()):
            gains = torch.zeros(len(order), dtype=torch.float64)
            left.add_gains(gains)
            found[k + 1] = found[k] + gains[unit]
            left.eliminate(unit)
        return found

    def left(self, order: Tensor, weight: Tensor) -> Tensor:
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

    def __init__(self, block: RowBlock) -> None:
        present, columns = layout(block.unit.numpy())
        flat, r = torch.from_numpy(columns.reshape(-1)), columns.shape[1]
        self._ridge, self._lacking = block.ridge, block.targets.clone()
        self._inputs, self._weight = _taken(block.inputs, flat), _taken(block.weight, flat)
        if self._inputs is block.inputs:
            self._inputs = block.inputs.clone()
        rows = self._inputs.reshape(len(present), r, -1)
        diagonal = rows @ rows.mT + self._ridge * torch.eye(r, dtype=torch.float64)
        numerator = torch.cat([cross @ cross.mT for cross in self._cross(r)])
        super().__init__(present, torch.tensor([block.scale], dtype=torch.float64), diagonal[None], numerator[None])
        self._used, self._gone, self._pivots = 0, list[int](), 0
        self._kernels: Kernels | None = None
        self._open_panel()

    def _cross(self, r: int) -> Iterator[Tensor]:
        """C by unit, (some units, r, m) at a time."""
        step = max(1, AT_ONCE // r) * r
        for start in range(0, len(self._inputs), step):
            own = slice(start, start + step)
            yield torch.addmm(self._weight[own].double(), self._inputs[own], self._lacking, beta=self._ridge).reshape(
                -1, r, self._weight.shape[1]
            )

    def _pivot(self, own: slice) -> tuple[Tensor, Tensor]:
        left, turns, r = self._left[: self._used], self._turns[: self._used], self._r
        self._chosen = torch.addmm(self._inputs[own], left[:, own].mT, turns, alpha=-1)
        lacking, weights = self._products(own)
        both = torch.cat([self._chosen, lacking])
        products = torch.addmm(both @ self._inputs.mT, both @ turns.mT, left, alpha=-1)
        products[:r, own].diagonal().add_(self._ridge)
        products[r:].add_(weights, alpha=self._ridge)
        return products[None, :r], products[None, r:]

    def _products(self, own: slice) -> tuple[Tensor, Tensor]:
        """C_I E', (r, rows), and C_I W_0', (r, d)."""
        if self._kernels is not None:
            return self._kernels.pivot(own, self._chosen)
        cross = torch.addmm(self._weight[own].double(), self._chosen, self._lacking, beta=self._ridge)
        return cross @ self._lacking.mT, cross.to(self._weight.dtype) @ self._weight.mT

    def _take(self, own: slice, root: Tensor, n: Tensor, t: Tensor) -> None:
        del t
        half = solved(root[0], self._chosen)
        turn = _shorter(half) @ half
        if self._kernels is not None:
            self._kernels.take(own, self._chosen, turn, half)
        else:
            self._lacking.addmm_(self._chosen.mT, self._weight[own].double(), alpha=-1)
            self._lacking.addmm_(turn.mT, half @ self._lacking, alpha=-1)
        used = self._used
        self._left[used : used + self._r], self._turns[used : used + self._r] = n[0], turn
        self._used = used + self._r
        self._gone.append(own.start // self._r)
        if self._used + self._r > len(self._left):
            self._close_panel()

    def _close_panel(self) -> None:
        """Bring X up to date and, now and then, drop the chosen units from it."""
        left, turns, columns = self._left[: self._used], self._turns[: self._used], None
        if SPENT * len(self._units) <= len(self._gone) < len(self._units):
            columns = self._shrink(self._gone)
            self._inputs, left, self._gone = self._inputs[columns], left[:, columns], []
            if self._kernels is None:
                self._weight = self._weight[columns]
        self._inputs.addmm_(left.mT, turns, alpha=-1)
        self._pivots += len(turns)
        if self._kernels is not None:
            self._kernels.close(columns)
        elif self._r < MANY and AFTER * self._pivots > len(self._weight) and Kernels.pay(turns.shape[1], self._weight):
            self._kernels = Kernels(self._lacking, self._weight, self._ridge, len(self._left))
        self._open_panel()

    def _open_panel(self) -> None:
        columns, rows = self._inputs.shape
        width = max(1, PANEL // self._r) * self._r
        self._left = torch.empty(width, columns, dtype=torch.float64)
        self._turns = torch.empty(width, rows, dtype=torch.float64)
        self._used = 0


def _shorter(half: Tensor) -> Tensor:
    """U diag(1 / (1 + sqrt(1 - s))) U' where V'V = U diag(s) U', for V' (r, rows)."""
    if len(half) == 1:
        return ((1 - half @ half.mT).clamp(min=0).sqrt() + 1).reciprocal()
    squares, basis = torch.linalg.eigh(half @ half.mT)
    found: Tensor = basis / (1 + (1 - squares).clamp(min=0).sqrt()) @ basis.mT
    return found


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
