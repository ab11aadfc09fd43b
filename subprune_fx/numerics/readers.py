"""How a contraction reads its input: activations to design-matrix columns, weights to matrices and back.

Every contraction is y = B W per group, with B (rows: samples x positions; columns: input channel x kernel offset).
Matrices come transposed, (groups, columns, rows), since that is the layout one copy produces and a Gram product reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor

from subprune_fx.numerics.geometry import Geometry, Line
from subprune_fx.numerics.shifts import weight_gradient


class Reader(Protocol):
    """One contraction's geometry."""

    @property
    def groups(self) -> int:
        """Independent blocks of channels (1 unless a grouped convolution)."""

    @property
    def taps(self) -> int:
        """Columns per input channel: the kernel's size."""

    def columns(self, x: Tensor) -> Tensor:
        """Design matrix of an activation, transposed: (groups, inputs / groups * taps, rows)."""

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """The same contraction as a convolution that pads with zeros, if it is one, and what that reads."""

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """B'Y for an input and an output activation, (groups, inputs / groups * taps, outputs / groups)."""

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """B W as an output activation, for an input and a `matrix`."""

    def read(self, y: Tensor) -> Tensor:
        """Of an output activation, the positions that rows stand for: all, but for a `ThinnedReader`."""

    def targets(self, y: Tensor) -> Tensor:
        """Output activation at those positions, rows as in `columns`: (groups, outputs / groups, rows)."""

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight as (groups, inputs / groups * taps, outputs / groups)."""

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Inverse of `matrix`; kernel sizes and layout as in `like`."""


@dataclasses.dataclass(frozen=True)
class LinearReader:
    """y = x W', as a linear layer or a product with a matrix.

    Attributes:
        transposed: Whether the weight is stored (inputs, outputs).
        groups: See `Reader`.
        taps: See `Reader`.
        axis: Dimension of x that is summed over.
        made: Dimension of y that takes its place.
    """

    transposed: bool = False
    groups: int = 1
    taps: int = 1
    axis: int = -1
    made: int = -1

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return _last(x, self.axis)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        return x, None

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self.columns(x) @ self.targets(y).mT

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        return (x.movedim(self.axis, -1) @ matrix[0]).movedim(-1, self.made)

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return _last(y, self.made)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        return (weight if self.transposed else weight.t())[None]

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        del like
        return (matrix[0] if self.transposed else matrix[0].t()).contiguous()


@dataclasses.dataclass(frozen=True)
class ConvReader:
    """A convolution of any number of dimensions.

    Attributes:
        kernel: Sizes.
        stride: Steps.
        padding: Per spatial dimension, (before, after).
        dilation: Spacing of the taps.
        groups: Channel groups.
        mode: Padding mode as `torch.nn.functional.pad` names it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "constant"

    @property
    def taps(self) -> int:
        """See `Reader`."""
        return math.prod(self.kernel)

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return _patches(self._padded(x), self.kernel, self.stride, self.dilation, self.groups)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        if self.mode == "constant" and min(amount for pair in self.padding for amount in pair) >= 0:
            return x, self
        nothing = ((0, 0),) * len(self.kernel)
        return self._padded(x), dataclasses.replace(self, padding=nothing, mode="constant")

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        x, padding = self._unpadded(x)
        found = weight_gradient(y, x, self.kernel, self.stride, self.dilation, self.groups, padding)
        return self.matrix(found)

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        flat = matrix.transpose(1, 2).reshape(-1, matrix.shape[1])
        weight, zeros = flat.reshape(len(flat), -1, *self.kernel), [0] * len(self.kernel)
        x, padding = self._unpadded(x)
        return torch.convolution(x, weight, None, self.stride, padding, self.dilation, False, zeros, self.groups)

    def _padded(self, x: Tensor) -> Tensor:
        flat = [amount for pair in reversed(self.padding) for amount in pair]
        return F.pad(x, flat, mode=self.mode) if any(flat) else x

    def _unpadded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The input, padded as far as torch's own convolution cannot do it, and the zeros that this is to add."""
        before = [first for first, _ in self.padding]
        if self.mode == "constant" and min(before) >= 0 and all(first == last for first, last in self.padding):
            return x, before
        return self._padded(x), [0] * len(before)

    def geometry(self, x: Tensor) -> Geometry:
        """Of a `plain` convolution and its input."""
        sizes = zip(x.shape[2:], self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return Geometry(x.shape[1], self.groups, tuple(Line(*values) for values in sizes))

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y.transpose(0, 1).reshape(self.groups, y.shape[1] // self.groups, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        flat = matrix.transpose(1, 2).reshape(-1, matrix.shape[1])
        return flat.reshape(flat.shape[0], -1, *like.shape[2:]).contiguous()


@dataclasses.dataclass(frozen=True)
class TransposedConvReader:
    """A transposed convolution: a convolution of the zero-stuffed input with the flipped kernel.

    Attributes:
        kernel: Sizes.
        stride: Zero-stuffing factors.
        padding: Per spatial dimension, what is cut from the output (before, after).
        output_padding: What is added after the output.
        dilation: Spacing of the taps.
        groups: Channel groups.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def taps(self) -> int:
        """See `Reader`."""
        return math.prod(self.kernel)

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        ones = (1,) * len(self.kernel)
        return _patches(self._stuffed(x), self.kernel, ones, self.dilation, self.groups)

    def _stuffed(self, x: Tensor) -> Tensor:
        """What the convolution reads: zeros between the input's positions and around them."""
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], self.stride, strict=True)]
        stuffed = x.new_zeros(*x.shape[:2], *sizes)
        every: tuple[Any, ...] = tuple(slice(None, None, step) for step in self.stride)
        stuffed[(..., *every)] = x
        flat: list[int] = []
        for kernel, cut, extra, gap in reversed(
            list(zip(self.kernel, self.padding, self.output_padding, self.dilation, strict=True))
        ):
            edge = gap * (kernel - 1)
            flat += [edge - cut[0], edge - cut[1] + extra]
        return F.pad(stuffed, flat)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        nothing, ones = ((0, 0),) * len(self.kernel), (1,) * len(self.kernel)
        return self._stuffed(x), ConvReader(self.kernel, ones, nothing, self.dilation, self.groups)

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        stuffed, plain = self.plain(x)
        assert plain is not None
        return plain.cross(stuffed, y)

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        stuffed, plain = self.plain(x)
        assert plain is not None
        return plain.output(stuffed, matrix)

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y.transpose(0, 1).reshape(self.groups, y.shape[1] // self.groups, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        flipped = weight.flip(*range(2, weight.ndim)) if weight.ndim > 2 else weight
        inputs, outputs = weight.shape[0] // self.groups, weight.shape[1]
        parts = flipped.reshape(self.groups, inputs, outputs, -1)
        return parts.transpose(2, 3).reshape(self.groups, -1, outputs)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        parts = matrix.reshape(self.groups, -1, self.taps, matrix.shape[2]).transpose(2, 3)
        flipped = parts.reshape(-1, matrix.shape[2], *like.shape[2:])
        return flipped.flip(*range(2, like.ndim)).contiguous()


def _patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """All patches of a padded activation (N, C, ...) as (groups, C / groups * taps, N * positions), one copy."""
    by_channel = x.transpose(0, 1)
    rank = len(kernel)
    counts = [
        (size - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, gap in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    strides = by_channel.stride()
    shape = (by_channel.shape[0], *kernel, by_channel.shape[1], *counts)
    steps = (
        strides[0],
        *(strides[2 + d] * dilation[d] for d in range(rank)),
        strides[1],
        *(strides[2 + d] * stride[d] for d in range(rank)),
    )
    view = by_channel.as_strided(shape, steps, by_channel.storage_offset())
    return view.reshape(groups, by_channel.shape[0] // groups * math.prod(kernel), -1)


def _last(tensor: Tensor, axis: int) -> Tensor:
    """(1, size of `axis`, everything else)."""
    return tensor.movedim(axis, -1).reshape(1, -1, tensor.shape[axis]).transpose(1, 2)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What `padding="same"` pads before and after each dimension (torch puts the odd one after).

    >>> same_padding((3, 4), (1, 1))
    ((1, 1), (1, 2))
    """
    totals = [gap * (taps - 1) for taps, gap in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
