"""How a convolution reads its input, see `numerics.readers`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor

from subprune_fx.numerics.geometry import Geometry, Line
from subprune_fx.numerics.shifts import weight_gradient


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
        return patches(self._padded(x), self.kernel, self.stride, self.dilation, self.groups)

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


def patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
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


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What `padding="same"` pads before and after each dimension (torch puts the odd one after).

    >>> same_padding((3, 4), (1, 1))
    ((1, 1), (1, 2))
    """
    totals = [gap * (taps - 1) for taps, gap in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
