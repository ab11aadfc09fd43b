"""Ridge regressions of a consumer that has fewer rows than columns: the rows themselves, not their products.

A network's first fully connected layer may read 25,088 columns, whose Gram matrix takes 5 GB; 512 samples are 100 MB.
Everything that normal equations give (see `numerics.normal`) follows from the rows. With

    M = I - Z (Z'Z + lambda I)^-1 Z' = lambda (Z Z' + lambda I)^-1 = R'R,

columns Z that are given their best weights leave the regression of R (Y - Z W_0) on R times the other columns, with the
same ridge and original weights.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from subprune_fx.numerics.cholesky import JITTER, ROUNDING, factor
from subprune_fx.numerics.cross_validation import Spectrum
from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.geometry import slices
from subprune_fx.numerics.row_elimination import AT_ONCE, RowBlock, outputs, squared, stacked


@dataclasses.dataclass(frozen=True)
class RowNormal:
    """The regressions of all channel groups; every group has as many columns and outputs."""

    systems: tuple[RowSystem, ...]

    @property
    def energy(self) -> Tensor:
        """See `Equations`."""
        return torch.tensor([system.energy for system in self.systems], dtype=torch.float64)

    def only(self, kept: Tensor) -> RowNormal:
        """See `Equations`."""
        return RowNormal(tuple(system.only(own) for system, own in zip(self.systems, kept, strict=True)))

    def pulled(self, more: Tensor) -> RowNormal:
        """See `Equations`."""
        pairs = zip(self.systems, more.tolist(), strict=True)
        return RowNormal(tuple(dataclasses.replace(system, ridge=system.ridge + own) for system, own in pairs))

    def solution(self) -> Tensor:
        """See `Equations`."""
        return stacked([system.solution() for system in self.systems])

    def system(self, group: int) -> RowSystem:
        """See `Equations`."""
        return self.systems[group]


@dataclasses.dataclass(frozen=True)
class RowSystem:
    """The regression of one channel group.

    Attributes:
        inputs: B', (d, rows), float64.
        targets: Y, (rows, m), float64.
        weight: W_0, (d, m), in the precision it came in: it may be as large as the rest of the network.
        ridge: lambda.
        lost: lambda ||W_0||^2 of columns that are there no more.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    ridge: float
    lost: float = 0.0

    @property
    def energy(self) -> float:
        """||Y||^2 + lambda ||W_0||^2."""
        return float(self.targets.square().sum()) + self._pull() + self.lost

    def _pull(self) -> float:
        return self.ridge * squared(self.weight)

    def only(self, columns: Tensor) -> RowSystem:
        """See `System`."""
        found = self._on(columns)
        return dataclasses.replace(found, lost=self.lost + self._pull() - found._pull())  # noqa: SLF001 - its own

    def _on(self, columns: Tensor) -> RowSystem:
        return dataclasses.replace(self, inputs=self.inputs[columns], weight=self.weight[columns])

    def solution(self) -> Tensor:
        """The best weights: W_0 + B' (B B' + lambda I)^-1 (Y - B W_0), or as usual where there are more rows."""
        columns, rows = self.inputs.shape
        if columns <= rows:
            cross = self.inputs @ self.targets + self.ridge * self.weight
            solved = torch.cholesky_solve(cross, factor(_with(self.inputs @ self.inputs.mT, self.ridge)))
            return solved.to(self.weight)
        root = factor(_with(self.inputs.mT @ self.inputs, self.ridge))
        lacking = torch.cholesky_solve(self.targets - outputs(self.inputs, self.weight), root)
        found = self.weight.clone()
        for part in slices(len(found), AT_ONCE):
            found[part] += self.inputs[part] @ lacking
        return found

    def fixed(self, held: Tensor, left: Tensor) -> RowSystem:
        """See `System`."""
        targets = self.targets - outputs(self.inputs[held], self.weight[held])
        return dataclasses.replace(self._on(left), targets=targets)

    def eliminated(self, gone: Tensor, left: Tensor) -> RowSystem:
        """See `System`."""
        chosen = self.inputs[gone]
        squares, basis = torch.linalg.eigh(chosen.mT @ chosen)
        ridge = max(self.ridge, ROUNDING * float(squares.max()), torch.finfo(torch.float32).tiny)
        squares = squares.where(squares > JITTER * squares.max(), 0)  # what eigh finds there is rounding
        shorter = (ridge / (squares + ridge)).sqrt()
        turn = shorter[:, None] * basis.mT
        targets = turn @ (self.targets - outputs(chosen, self.weight[gone]))
        return dataclasses.replace(self._on(left), inputs=self.inputs[left] @ turn.mT, targets=targets)

    def spectrum(self, ridge: float) -> Spectrum:
        """See `System`."""
        del ridge
        lacking, inner = self.targets - outputs(self.inputs, self.weight), len(self.inputs) <= self.inputs.shape[1]
        squares, basis = torch.linalg.eigh(self.inputs @ self.inputs.mT if inner else self.inputs.mT @ self.inputs)
        products = basis.mT @ (self.inputs @ lacking if inner else lacking)
        return Spectrum.of(squares, products, float(lacking.square().sum()), inner=inner)

    def part(self, unit: Tensor, scale: float) -> Part:
        """See `System`."""
        return RowBlock(self.inputs, self.targets, self.weight, self.ridge, unit, scale, self.lost)


def _with(products: Tensor, ridge: float) -> Tensor:
    """Products with the ridge on their diagonal, in place."""
    products.diagonal().add_(ridge)
    return products
