"""The ratio at which something measured crosses a limit, from few measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from subprune_fx.report import Step

FINE = 1.05
"""Ratios closer than this factor are not told apart: a channel more or less in a layer or two."""
ATTEMPTS = 12
"""Most measurements."""


@dataclasses.dataclass(frozen=True)
class Bracket:
    """What was measured, and where the limit lies between.

    Attributes:
        below: The largest ratio measured at or below the limit, None if there is none.
        above: The smallest measured above it, None if the largest ratio possible is still at or below.
        tried: Every measurement, in order.
    """

    below: Step | None
    above: Step | None
    tried: tuple[Step, ...]


def bracket(
    measure: Callable[[float], float],
    limit: float,
    *,
    origin: float,
    start: float,
    most: float,
    fine: float = FINE,
    attempts: int = ATTEMPTS,
) -> Bracket:
    """Find where a quantity that grows with the ratio passes a limit.

    The ratio is doubled until the limit is passed, then the bracket is narrowed at the point where a straight line in
    log(ratio) meets the limit, but never by less than a third: fewer steps than bisection where
    the quantity is smooth, and an end where it jumps.

    Args:
        measure: From a ratio above 1 to the quantity.
        limit: The limit.
        origin: The quantity at ratio 1, at most the limit.
        start: The first ratio.
        most: The largest ratio possible.
        fine: Stop when the bracket is narrower than this factor.
        attempts: Most measurements.
    """
    low, high = Step(1.0, origin), None
    tried: list[Step] = []
    ratio = min(start, most)
    while len(tried) < attempts:
        step = Step(ratio, measure(ratio))
        tried.append(step)
        if step.value <= limit:
            low = step
        else:
            high = step
        if low.ratio >= most or (high is not None and high.ratio < low.ratio * fine):
            break
        ratio = min(2 * ratio, most) if high is None else _between(low, high, limit)
    return Bracket(low if low.ratio > 1 else None, high, tuple(tried))


def _between(low: Step, high: Step, limit: float) -> float:
    share = (limit - low.value) / (high.value - low.value)
    return float(low.ratio * (high.ratio / low.ratio) ** min(max(share, 1 / 3), 2 / 3))
