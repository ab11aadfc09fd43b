"""Gram matrices of convolutions from correlations of the activation with itself, without a design matrix."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor

from subprune_fx.numerics.geometry import ROWS_AT_ONCE, Geometry, assembled, region, slices
from subprune_fx.numerics.segments import Segment, segments

LANES, SPAN = 16, 8
"""Channels and positions of the last dimension that a library's convolution works on at once."""

MOVE, CALL = 150, 1 << 20
"""What an element of an input and a library call cost, in multiply-adds of a matrix product (one core, AVX-512)."""


class Shifts:
    """From correlations of the activation with itself."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._half = _longest(geometry)
        self._columns = _columns(geometry)
        self._pieces = list(itertools.product(*self._columns))
        self._sums: list[Tensor | None] = [None] * len(self._pieces)
        self._margins = []
        for line, column in zip(geometry.lines, self._columns, strict=True):
            ranges = [segment.read(line.dilation) for segment in column]
            low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
            self._margins.append((max(0, -low), max(0, high - line.size)))

    @staticmethod
    def cost(geometry: Geometry, samples: int) -> float:
        """Multiply-adds."""
        channels = geometry.groups * _rounded(geometry.width, LANES) ** 2
        total = 0.0
        for piece in itertools.product(*_columns(geometry)):
            ranges = [s.read(line.dilation) for s, line in zip(piece, geometry.lines, strict=True)]
            moved = geometry.channels * math.prod(high - low for low, high in ranges)
            counts = [s.count for s in piece[:-1]] + [_rounded(piece[-1].count, SPAN)]
            products = channels * math.prod(counts) * math.prod(s.width for s in piece)
            total += samples * (products + MOVE * moved) + CALL
        return total

    def add(self, x: Tensor) -> None:
        """See `Gram`."""
        for part in slices(len(x), ROWS_AT_ONCE // self._geometry.outputs):
            self._add(x[part])

    def _add(self, x: Tensor) -> None:
        flat = [amount for pair in reversed(self._margins) for amount in pair]
        padded = F.pad(x, flat) if any(flat) else x
        for i, piece in enumerate(self._pieces):
            found = self._correlation(x, padded, piece).double()
            known = self._sums[i]
            self._sums[i] = found if known is None else known.add_(found)

    def _correlation(self, x: Tensor, padded: Tensor, piece: Sequence[Segment]) -> Tensor:
        """Products of channels summed over samples and the piece's positions, (C, C / groups, *offsets).

        They are the gradient of a convolution that reads `padded` with a kernel as large as there are offsets.
        """
        geometry = self._geometry
        dilation = [line.dilation for line in geometry.lines]
        own = tuple(slice(s.start, s.start + (s.count - 1) * s.step + 1, s.step) for s in piece)
        reads = [s.read(gap) for s, gap in zip(piece, dilation, strict=True)]
        other = tuple(
            slice(low + before, high + before) for (low, high), (before, _) in zip(reads, self._margins, strict=True)
        )
        kernel, one, two = [s.width for s in piece], region(x, own), region(padded, other)
        if math.prod(kernel) > 1:
            return weight_gradient(one, two, kernel, [s.step for s in piece], dilation, geometry.groups)
        two = region(two, (slice(None, None, s.step) for s in piece))
        a, b = (part.transpose(0, 1).reshape(geometry.groups, geometry.width, -1) for part in (one, two))
        return (a @ b.mT).reshape(geometry.channels, geometry.width, *kernel)

    def total(self) -> Tensor:
        """See `Gram`."""
        half = self._half
        by_offset = {}
        for piece, known in zip(self._pieces, self._sums, strict=True):
            assert known is not None
            sign = math.prod(segment.sign for segment in piece)
            by_offset[piece] = (sign * known).movedim((0, 1), (-2, -1)).contiguous()
        like = next(iter(by_offset.values()))

        def block(p: tuple[int, ...], q: tuple[int, ...]) -> Tensor:
            held = [_holding(column, *pair) for column, pair in zip(self._columns, zip(p, q, strict=True), strict=True)]
            found = like.new_zeros(like.shape[-2:])
            for piece in itertools.product(*held):
                found += by_offset[piece][tuple(b - a - s.offsets[0] for s, a, b in zip(piece, p, q, strict=True))]
            return found

        return assembled(self._geometry, block, lambda p, q: (p[half], p) <= (q[half], q))


def _holding(column: Sequence[Segment], p: int, q: int) -> list[Segment]:
    """The segments that count for a pair of taps."""
    return [s for s in column if p in s.users and s.offsets[0] <= q - p <= s.offsets[1]]


def weight_gradient(
    outputs: Tensor,
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding: Sequence[int] | None = None,
) -> Tensor:
    """Sum over samples and positions of outputs times what each tap reads of the inputs, (M, C / groups, *kernel).

    Args:
        outputs: (samples, M, ...): factors, one for each position of a convolution of the inputs.
        inputs: (samples, C, ...).
        kernel: Its sizes.
        stride: Its steps.
        dilation: Spacing of its taps.
        groups: Its groups.
        padding: Zeros on both sides, by dimension; None: none.
    """
    weight = inputs.new_empty(1).expand(outputs.shape[1], inputs.shape[1] // groups, *kernel)
    zeros = [0] * len(kernel)
    found = torch.ops.aten.convolution_backward(
        outputs, inputs, weight, None, stride, padding or zeros, dilation, False, zeros, groups, [False, True, False]
    )[1]
    assert isinstance(found, Tensor)
    return found


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _longest(geometry: Geometry) -> int:
    """The dimension with the most taps: leaving out half of its offsets saves most."""
    return max(range(len(geometry.lines)), key=lambda d: geometry.kernel[d])


@functools.lru_cache(64)
def _columns(geometry: Geometry) -> list[list[Segment]]:
    """Segments by dimension; their products are the rectangles that taps read."""
    half = _longest(geometry)
    return [segments(line, half=d == half) for d, line in enumerate(geometry.lines)]
