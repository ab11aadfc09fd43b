"""Second moments that wait for their use: of a symmetric matrix half is enough.

All consumers' moments wait at a time, and on a large network most of the memory is theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.moments import Moments

ROWS = 256
"""Rows of a Gram matrix that are cut at the same column; matrices of no more rows are kept as they are."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """Moments whose Gram matrix is rows a to b of its columns up to b, for all a in steps of `ROWS`."""

    rest: Moments
    lower: tuple[Tensor, ...]

    @staticmethod
    def of(moments: Moments) -> Packed:
        """Of moments with a symmetric Gram matrix."""
        gram = moments.gram
        cuts = range(0, gram.shape[1], ROWS)
        lower = tuple(gram[:, a : a + ROWS, : a + ROWS].clone() for a in cuts)
        return Packed(dataclasses.replace(moments, gram=gram.new_zeros(gram.shape[0], 0, 0)), lower)

    def moments(self) -> Moments:
        """A matrix of its own for whoever asks."""
        groups, size = self.lower[-1].shape[0], self.lower[-1].shape[2]
        gram = self.lower[0].new_empty(groups, size, size)
        for number, block in enumerate(self.lower):
            rows, columns = slice(number * ROWS, number * ROWS + block.shape[1]), slice(0, block.shape[2])
            gram[:, columns, rows] = block.mT
            gram[:, rows, columns] = block
        return dataclasses.replace(self.rest, gram=gram)

    def only(self, kept: Tensor) -> Moments:
        """Moments of the columns `kept`, (1, kept d), ascending, of the only group; no more is unpacked."""
        columns = kept[0]
        gram = self.lower[0].new_empty(1, len(columns), len(columns))
        ends = torch.searchsorted(columns, torch.arange(len(self.lower) + 1) * ROWS).tolist()
        for number, (block, start, end) in enumerate(zip(self.lower, ends, ends[1:], strict=False)):
            part = block[:, columns[start:end, None] - number * ROWS, columns[:end]]
            gram[:, start:end, :end], gram[:, :end, start:end] = part, part.mT
        rest = dataclasses.replace(self.rest, columns=self.rest.columns[:, columns], cross=self.rest.cross[:, columns])
        return dataclasses.replace(rest, gram=gram)


class Waiting(Mapping[str, Collected]):
    """Moments by consumer, packed; consumers that read the same in the same way share them."""

    def __init__(self, found: Iterable[tuple[str, Collected]], shared: Mapping[str, str]) -> None:
        """Take them, one by one.

        Args:
            found: By name of one of the consumers that share them.
            shared: By name of each consumer, that one.
        """
        self._shared = dict(shared)
        self._kept = {name: _packed(moments) for name, moments in found}

    def __getitem__(self, name: str) -> Collected:
        """The moments of a consumer."""
        found = self._kept[self._shared[name]]
        return found.moments() if isinstance(found, Packed) else found

    def only(self, name: str, kept: Tensor) -> Collected:
        """Moments of the columns `kept`, (1, kept d), ascending, of a consumer with one group."""
        return self._kept[self._shared[name]].only(kept)

    def __iter__(self) -> Iterator[str]:
        """All consumers."""
        return iter(self._shared)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._shared)


def _packed(moments: Collected) -> Collected | Packed:
    return Packed.of(moments) if isinstance(moments, Moments) and moments.gram.shape[1] > ROWS else moments
