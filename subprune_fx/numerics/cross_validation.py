"""The ridge that generalised cross-validation asks for (Golub, Heath, Wahba 1979, Technometrics 21).

With the singular values of the design matrix B squared, s, and R = Y - B W_0 what the original weights leave, of which
the k-th left singular vector takes q_k = ||u_k' R||^2 and all together leave e, the mean error of a row that the other
rows were fitted without is about

    V(lambda) = (e + sum_k (lambda / (s_k + lambda))^2 q_k) / (1 - (1 + sum_k s_k / (s_k + lambda)) / rows)^2.

The 1 is the intercept. It holds for rows that are independent of each other: one a sample, not the patches of an image.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

ROUNDING = 1e-10
"""Eigenvalues below this fraction of the largest are rounding of sums in float64."""

FEW = 32
"""Rows that say nothing about a ridge."""

FREE = 1e-3
"""Least fraction of the rows that counts as free; where weights fit all rows, V is one rounding error over another."""

MOST = 1e4
"""How many times the least ridge is tried: by default ten times the mean square of a column."""

STEPS = 33
"""Ridges that are tried, evenly on a logarithmic scale: an eighth of a decade apart."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A regression as cross-validation sees it.

    Attributes:
        squares: s, (min(d, rows),).
        explained: q, of the same shape.
        left: e.
    """

    squares: Tensor
    explained: Tensor
    left: float

    @staticmethod
    def of(squares: Tensor, products: Tensor, energy: float, *, inner: bool) -> Spectrum:
        """From an eigendecomposition; what is rounding there explains nothing.

        Args:
            squares: Eigenvalues of B'B, or of B B'.
            products: Eigenvectors times B'R, or times R, (eigenvalues, m).
            energy: ||R||^2.
            inner: Whether they are those of B'B.
        """
        real = squares > ROUNDING * squares.max()
        found = products.square().sum(1)
        explained = (found / squares if inner else found).where(real, 0)
        return Spectrum(squares.clamp(min=0), explained, max(energy - float(explained.sum()), 0.0))


def least_error(spectrum: Spectrum, least: float, rows: int) -> float:
    """The ridge with the least V, of those from `least` to `MOST` times as much."""
    if least <= 0 or rows < FEW:
        return least
    ridges = least * torch.logspace(0, math.log10(MOST), STEPS, dtype=torch.float64)[:, None]
    s, q = spectrum.squares, spectrum.explained
    error = spectrum.left + ((ridges / (s + ridges)).square() * q).sum(1)
    free = 1 - (1 + (s / (s + ridges)).sum(1)) / rows
    return float(ridges[(error / free.clamp(min=FREE).square()).argmin()])
