"""Gram matrices of convolutions on maps that are hardly larger than the kernel."""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from subprune_fx.numerics.geometry import Geometry, assembled

SPREAD, GATHER = 500, 30
"""What a product of two positions and an element of a sum of matrices cost, in multiply-adds of a matrix product."""

LIMIT = 1 << 25
"""Most products of two positions: they are all in memory."""


class Dense:
    """From all products of two positions."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._sum: Tensor | None = None

    @staticmethod
    def cost(geometry: Geometry, samples: int) -> float:
        """Multiply-adds; infinite where the products would take too much memory."""
        products = geometry.groups * (geometry.width * geometry.positions) ** 2
        sums = math.prod(geometry.kernel) ** 2 * geometry.outputs * geometry.channels * geometry.width / 2
        return math.inf if products > LIMIT else (samples + SPREAD) * products + GATHER * sums

    def add(self, x: Tensor) -> None:
        """See `Gram`."""
        flat = x.reshape(len(x), self._geometry.groups, -1).permute(1, 2, 0)
        product = (flat @ flat.mT).double()
        self._sum = product if self._sum is None else self._sum.add_(product)

    def total(self) -> Tensor:
        """See `Gram`."""
        geometry = self._geometry
        assert self._sum is not None
        width, positions = geometry.width, geometry.positions
        apart = self._sum.reshape(geometry.groups, width, positions, width, positions)
        known = apart.permute(2, 4, 0, 1, 3).reshape(positions, positions, -1, width)

        reads = {tap: self._reads(tap) for tap in geometry.taps()}

        def block(p: tuple[int, ...], q: tuple[int, ...]) -> Tensor:
            pairs = [(u, v) for u, v in zip(reads[p], reads[q], strict=True) if u >= 0 and v >= 0]
            found = known.new_zeros(known.shape[2:])
            for u, v in pairs:
                found += known[u, v]
            return found

        return assembled(geometry, block, lambda p, q: p <= q)

    def _reads(self, tap: tuple[int, ...]) -> list[int]:
        """Flat input position by output; -1 for padding."""
        found = []
        lines = self._geometry.lines
        for at in itertools.product(*(line.reads(t) for line, t in zip(lines, tap, strict=True))):
            flat = 0
            for position, line in zip(at, lines, strict=True):
                flat = flat * line.size + position if flat >= 0 and 0 <= position < line.size else -1
            found.append(flat)
        return found
