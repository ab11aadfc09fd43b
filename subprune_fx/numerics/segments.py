"""One dimension of a convolution: which stretches of the input its taps run over, and how far apart two taps are."""

from __future__ import annotations

import dataclasses
import itertools

from subprune_fx.numerics.geometry import Line


@dataclasses.dataclass(frozen=True)
class Segment:
    """Input positions start, start + step, ... and the taps for which they count.

    Attributes:
        start: The first.
        count: How many.
        step: The convolution's stride.
        sign: 1: the taps read them. -1: they do not, though another segment counts them.
        users: The taps p.
        offsets: Least and largest q - p, q any tap, for which q reads something other than padding as p reads these.
    """

    start: int
    count: int
    step: int
    sign: int
    users: tuple[int, ...]
    offsets: tuple[int, int]

    @property
    def width(self) -> int:
        """How many offsets."""
        return self.offsets[1] - self.offsets[0] + 1

    def read(self, dilation: int) -> tuple[int, int]:
        """Half-open range of positions that lie `offsets` from the segment's."""
        low, high = (dilation * offset for offset in self.offsets)
        return self.start + low, self.start + (self.count - 1) * self.step + high + 1


def segments(line: Line, *, half: bool = False) -> list[Segment]:
    """Segments of the input such that each tap reads what its segments hold, by their signs.

    Two taps p and q of one output are dilation (q - p) apart wherever they are, so the products of what they read,
    summed over outputs, are sums over segments that all pairs with the same difference share: the Toeplitz structure
    of a convolution's Gram matrix. Near the borders taps read different positions; each such position is a segment
    of its own, taken off where a tap does not reach it, and in most convolutions meets no padding at few offsets only.

    Args:
        line: The dimension.
        half: Only offsets of at least 0; the others follow by symmetry.

    >>> [(s.start, s.count, s.sign, s.users, s.offsets) for s in segments(Line(8, 3, padding=(1, 1)))]
    [(0, 8, 1, (0, 1, 2), (-2, 2)), (0, 1, -1, (2,), (0, 0)), (7, 1, -1, (0,), (0, 0))]
    """
    found = []
    inside = {tap: [at for at in line.reads(tap) if 0 <= at < line.size] for tap in range(line.taps)}
    for taps in _phases({tap: at for tap, at in inside.items() if at}, line.stride):
        every = sorted({at for tap in taps for at in inside[tap]})
        found.append(_segment(line, 1, taps, every, half=half))
        short: dict[tuple[int, ...], list[int]] = {}
        for at in every:
            short.setdefault(tuple(tap for tap in taps if at not in inside[tap]), []).append(at)
        for users, positions in short.items():
            runs = _progressions(positions, line.stride) if users else []
            found += [_segment(line, -1, users, run, half=half) for run in runs]
    return found


def _phases(inside: dict[int, list[int]], stride: int) -> list[tuple[int, ...]]:
    """Taps that read positions with the same remainder by the stride."""
    found: dict[int, tuple[int, ...]] = {}
    for tap, positions in inside.items():
        phase = positions[0] % stride
        found[phase] = (*found.get(phase, ()), tap)
    return list(found.values())


def _progressions(positions: list[int], step: int) -> list[list[int]]:
    """Ascending positions in runs of equal steps."""
    found = [positions[:1]]
    for before, position in itertools.pairwise(positions):
        if position - before == step:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def _segment(line: Line, sign: int, users: tuple[int, ...], positions: list[int], *, half: bool) -> Segment:
    differences = {q - p for p in users for q in range(line.taps) if q >= p or not half}
    possible = [
        offset
        for offset in differences
        if any(0 <= position + line.dilation * offset < line.size for position in positions)
    ]
    return Segment(positions[0], len(positions), line.stride, sign, users, (min(possible), max(possible)))
