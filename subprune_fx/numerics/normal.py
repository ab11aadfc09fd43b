"""Ridge regressions of a consumer as normal equations, stored as matrices.

With design matrix B, targets Y, original weights W_0 and ridge lambda a regression is

    min_W ||Y - B W||^2 + lambda ||W - W_0||^2,

so G = B'B + lambda I and C = B'Y + lambda W_0, and a consumer that keeps all its channels and whose target is B W_0
keeps its weights exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from subprune_fx.numerics.blocks import Block
from subprune_fx.numerics.cholesky import factor
from subprune_fx.numerics.cross_validation import Spectrum
from subprune_fx.numerics.elimination import Part


class System(Protocol):
    """The regression of one channel group, whatever is stored of it."""

    def only(self, columns: Tensor) -> System:
        """On some columns, without the others."""

    def fixed(self, held: Tensor, left: Tensor) -> System:
        """On the columns `left`, when those in `held` keep their original weights."""

    def eliminated(self, gone: Tensor, left: Tensor) -> System:
        """On the columns `left`, when those in `gone` have the best weights, whatever those of the others."""

    def spectrum(self, ridge: float) -> Spectrum:
        """For cross-validation, given lambda."""

    def part(self, unit: Tensor, scale: float) -> Part:
        """For greedy selection; the unit of each column, and the weight of the error."""


class Equations(Protocol):
    """The regressions of all channel groups of a consumer."""

    @property
    def energy(self) -> Tensor:
        """||Y||^2 + lambda ||W_0||^2, (groups,)."""

    def only(self, kept: Tensor) -> Equations:
        """On the columns `kept`, (groups, kept d)."""

    def pulled(self, more: Tensor) -> Equations:
        """With so much more of lambda, (groups,)."""

    def solution(self) -> Tensor:
        """The best weights, (groups, d, m)."""

    def system(self, group: int) -> System:
        """The regression of one channel group."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal equations of all channel groups.

    Attributes:
        gram: G, (groups, d, d), float64.
        cross: C, (groups, d, m), float64.
        energy: ||Y||^2 + lambda ||W_0||^2, (groups,).
        weight: W_0, (groups, d, m).
        roots: The Cholesky factor of G, once it has been needed; regressions of the same columns share it.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    weight: Tensor
    roots: list[Tensor] = dataclasses.field(default_factory=list)

    def only(self, kept: Tensor) -> Normal:
        """See `Equations`."""
        rows = torch.arange(len(kept))[:, None]
        gram = self.gram[rows[:, :, None], kept[:, :, None], kept[:, None, :]]
        return Normal(gram, self.cross[rows, kept], self.energy, self.weight[rows, kept])

    def solution(self) -> Tensor:
        """See `Equations`."""
        if not self.roots:
            self.roots.append(factor(self.gram))
        (root,) = self.roots  # by halves: `cholesky_solve` copies it
        half = torch.linalg.solve_triangular(root, self.cross, upper=False)
        found: Tensor = torch.linalg.solve_triangular(root.mT, half, upper=True)
        return found

    def mean_diagonal(self) -> Tensor:
        """Of G, (groups,)."""
        return self.gram.diagonal(dim1=1, dim2=2).mean(1)

    def aimed(self, cross: Tensor, energy: Tensor, ridge: Tensor) -> Normal:
        """The same G with other targets.

        Args:
            cross: B'Y.
            energy: ||Y||^2.
            ridge: lambda, (groups,).
        """
        cross = cross + ridge[:, None, None] * self.weight
        energy = energy.clamp(min=0) + ridge * self.weight.square().sum((1, 2))
        return dataclasses.replace(self, cross=cross, energy=energy)

    def pulled(self, more: Tensor) -> Normal:
        """See `Equations`; this one's factor is given up to make room."""
        self.roots.clear()
        gram = self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(more[:, None])
        energy = self.energy + more * self.weight.square().sum((1, 2))
        return Normal(gram, self.cross + more[:, None, None] * self.weight, energy, self.weight)

    def system(self, group: int) -> System:
        """See `Equations`."""
        return _System(self.gram[group], self.cross[group], float(self.energy[group]), self.weight[group])


@dataclasses.dataclass(frozen=True)
class _System:
    """Normal equations of one channel group; fields as of `Normal`."""

    gram: Tensor
    cross: Tensor
    energy: float
    weight: Tensor

    def only(self, columns: Tensor) -> _System:
        """See `System`."""
        gram = self.gram[columns[:, None], columns]
        return _System(gram, self.cross[columns], self.energy, self.weight[columns])

    def fixed(self, held: Tensor, left: Tensor) -> _System:
        """See `System`."""
        weight = self.weight[held]
        explained = self.gram[:, held] @ weight
        energy = self.energy + float((weight * (explained[held] - 2 * self.cross[held])).sum())
        return dataclasses.replace(self, cross=self.cross - explained, energy=energy).only(left)

    def eliminated(self, gone: Tensor, left: Tensor) -> _System:
        """See `System`."""
        root = factor(self.gram[gone[:, None], gone])
        rows = torch.linalg.solve_triangular(root, self.gram[gone[:, None], left], upper=False)
        known = torch.linalg.solve_triangular(root, self.cross[gone], upper=False)
        gram = self.gram[left[:, None], left].addmm_(rows.mT, rows, alpha=-1)
        cross = self.cross[left] - rows.mT @ known
        return _System(gram, cross, self.energy - float(known.square().sum()), self.weight[left])

    def spectrum(self, ridge: float) -> Spectrum:
        """See `System`."""
        squares, basis = torch.linalg.eigh(self.gram)
        known = self.gram @ self.weight
        energy = self.energy + float((self.weight * (known - 2 * self.cross)).sum())
        return Spectrum.of(squares - ridge, basis.mT @ (self.cross - known), energy, inner=True)

    def part(self, unit: Tensor, scale: float) -> Part:
        """See `System`."""
        return Block(self.gram, self.cross, unit, max(self.energy, 0.0), scale)
