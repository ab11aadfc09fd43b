"""How a transposed convolution reads its input, see `numerics.readers`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor

from subprune_fx.numerics.conv_reader import ConvReader, patches


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
        return patches(self._stuffed(x), self.kernel, ones, self.dilation, self.groups)

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
