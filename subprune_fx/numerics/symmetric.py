"""Symmetric matrices of which only the upper blocks are kept up to date: a product then takes little more than half.

A matrix is cut into strips of rows. What lies left of a strip's diagonal block is stale: it is the transpose of what
lies above that block, and read from there.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIPS = 8
"""Strips of a large matrix: updating it takes 9/16 of the time. With twice as many it would be 17/32."""

LEAST = 256
"""Rows of a strip, at least: products of fewer are slower for each element."""


class Symmetric:
    """b matrices of size d x d, float64."""

    def __init__(self, whole: Tensor, unit: int) -> None:
        """Take over matrices (b, d, d) of which the upper blocks, or all, are right.

        Args:
            whole: Changed from now on.
            unit: Strips begin at multiples of this.
        """
        self._whole, self._unit = whole, unit
        self._strips = strips(whole.shape[2], unit)

    def rows(self, own: slice) -> Tensor:
        """Rows within one unit, (b, rows, d)."""
        start = max(strip.start for strip in self._strips if strip.start <= own.start)
        if start == 0:
            return self._whole[:, own]
        return torch.cat([self._whole[:, :start, own].mT, self._whole[:, own, start:]], 2)

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """Take left' right from it, which is symmetric, of (b, k, d)."""
        for strip in self._strips:
            begun = slice(strip.start, None)
            self._whole[:, strip, begun].baddbmm_(left[:, :, strip].mT, right[:, :, begun], alpha=-1)

    def only(self, columns: Tensor) -> Symmetric:
        """Some rows and the same columns, ascending, whole units."""
        found = self._whole[:, columns[:, None], columns]
        for strip in strips(len(columns), self._unit):
            corner = found[:, strip, strip]
            corner.copy_(corner.triu() + corner.triu(1).mT)
        return Symmetric(found, self._unit)

    def squares(self) -> Tensor:
        """The diagonal blocks of units, (b, d / unit, unit, unit)."""
        b, d = self._whole.shape[:2]
        parts = self._whole.reshape(b, d // self._unit, self._unit, d // self._unit, self._unit)
        return parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()


def strips(size: int, unit: int) -> list[slice]:
    """Rows of a matrix of that size, strip by strip."""
    step = -(-max(LEAST, -(-size // STRIPS)) // unit) * unit
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def squared(rows: Tensor, unit: int) -> Tensor:
    """C C', its upper blocks, of C (d, m); (d, d)."""
    found = rows.new_empty(len(rows), len(rows))
    for strip in strips(len(rows), unit):
        torch.mm(rows[strip], rows[strip.start :].mT, out=found[strip, strip.start :])
    return found


def product(rows: Tensor) -> Tensor:
    """X X' of X (b, d, n); (b, d, d)."""
    if rows.shape[1] <= LEAST:
        return rows @ rows.mT
    found = rows.new_empty(*rows.shape[:2], rows.shape[1])
    for strip in strips(rows.shape[1], 1):
        found[:, strip, strip.start :] = rows[:, strip] @ rows[:, strip.start :].mT
        found[:, strip.stop :, strip] = found[:, strip, strip.stop :].mT
    return found
