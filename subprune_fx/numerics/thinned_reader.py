"""A convolution that is looked at in some positions of its output only."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.geometry import Line
from subprune_fx.numerics.readers import Reader

Inputs = Callable[[], Iterable[Tensor]]

PICKED = 1 << 24
"""Elements that are kept of a consumer's input while it is fitted (64 MB)."""


@dataclasses.dataclass(frozen=True)
class ThinnedReader:
    """See `Reader`; activations that it gives or is given as outputs are (samples, outputs, positions).

    Attributes:
        whole: The convolution.
        share: Fraction of the positions that is looked at, the same ones of all samples.
    """

    whole: ConvReader
    share: float

    @property
    def groups(self) -> int:
        """See `Reader`."""
        return self.whole.groups

    @property
    def taps(self) -> int:
        """See `Reader`."""
        return self.whole.taps

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return self._columns(self.pick(x))

    def pick(self, x: Tensor) -> Tensor:
        """What is looked at of an input, (samples, channels, taps, positions)."""
        plain, convolution = self.whole.plain(x)
        assert convolution is not None
        lines = convolution.geometry(plain[:1]).lines
        read, inside = _read(lines, self.share)
        found = plain.flatten(2).index_select(2, read.to(x.device)).reshape(len(x), x.shape[1], self.taps, -1)
        return found if bool(inside.all()) else found.mul_(inside.to(found).reshape(self.taps, -1))

    def _columns(self, picked: Tensor) -> Tensor:
        columns = picked.shape[1] // self.groups * self.taps
        return picked.permute(1, 2, 0, 3).reshape(self.groups, columns, -1)

    def plain(self, x: Tensor) -> tuple[Tensor, ConvReader | None]:
        """See `Reader`."""
        return x, None

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self.columns(x) @ self.targets(y).mT

    def output(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Reader`."""
        found = matrix.mT @ self.columns(x)
        return found.reshape(-1, len(x), found.shape[2] // len(x)).transpose(0, 1)

    def read(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return y.flatten(2).index_select(2, positions(tuple(y.shape[2:]), self.share).to(y.device))

    def targets(self, y: Tensor) -> Tensor:
        """See `Reader`."""
        return self.whole.targets(y)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Reader`."""
        return self.whole.matrix(weight)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Reader`."""
        return self.whole.weight(matrix, like)


class PickedReader(ThinnedReader):
    """The same, of what has been picked out of inputs."""

    def columns(self, x: Tensor) -> Tensor:
        """See `Reader`."""
        return self._columns(x)


def picked(reader: Reader, inputs: Inputs) -> tuple[Reader, Inputs]:
    """What a reader looks at in some inputs, and how that is read: picked out once, where it is not too much to keep.

    Args:
        reader: Any; all but a `ThinnedReader` look at everything.
        inputs: Gives them, (samples, ...) each.
    """
    if not isinstance(reader, ThinnedReader):
        return reader, inputs
    found: list[Tensor] = []
    for x in inputs():
        found.append(reader.pick(x))
        if sum(map(Tensor.numel, found)) > PICKED:
            return reader, inputs
    return PickedReader(reader.whole, reader.share), lambda: found


@functools.lru_cache(256)
def positions(sizes: tuple[int, ...], share: float) -> Tensor:
    """A share of the positions of a map, one at random from each of as many stretches of it, ascending, flat.

    On a grid, upsampled maps and maps of windows would show some of their phases only, and borders would count too much
    or not at all.
    """
    total = math.prod(sizes)
    count = math.ceil(share * total)
    ends = np.arange(count + 1) * total // count
    return torch.from_numpy(np.random.default_rng(total).integers(ends[:-1], ends[1:]))


@functools.lru_cache(256)
def _read(lines: tuple[Line, ...], share: float) -> tuple[Tensor, Tensor]:
    """Which input position each tap reads for each position, (taps x positions,), and whether it is none of padding."""
    sizes = tuple(line.outputs for line in lines)
    places = np.unravel_index(positions(sizes, share).numpy(), sizes)
    flat, inside = [], []
    for taps in itertools.product(*(range(line.taps) for line in lines)):
        where = [np.array(line.reads(tap))[place] for line, tap, place in zip(lines, taps, places, strict=True)]
        held = np.all([(at >= 0) & (at < line.size) for at, line in zip(where, lines, strict=True)], axis=0)
        inside.append(held)
        flat.append(np.ravel_multi_index([at * held for at in where], [line.size for line in lines]))
    return torch.from_numpy(np.concatenate(flat)), torch.from_numpy(np.concatenate(inside))
