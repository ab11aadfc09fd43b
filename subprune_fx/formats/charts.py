"""Line charts as coordinates for an SVG: what the template of `formats.page` draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 34
SPARK = (100, 30)
FLOOR = 1e-4
"""Errors below this look the same."""
FINEST = 1e-3
"""The least distance between labels of the y axis: a tenth of a per cent."""

Pairs = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Tick:
    """A label at a place along an axis."""

    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: For the legend.
        points: For an SVG polyline, `x,y x,y`.
        dots: The same as numbers, with what to say about each.
    """

    name: str
    points: str
    dots: tuple[tuple[float, float, str], ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart; all places are in the units of its view box.

    Attributes:
        title: What it shows.
        x_name: Of the axis.
        x_ticks: Along the bottom.
        y_ticks: Along the left.
        lines: What is drawn.
    """

    title: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def chart(
    title: str,
    x_name: str,
    series: Mapping[str, Pairs],
    y_text: Callable[[float], str],
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Chart:
    """Lines over a logarithmic x axis.

    Args:
        title: What it shows.
        x_name: Of the axis; values are positive.
        series: By name, at least one point in all.
        y_text: Writes a value of the y axis.
        limits: What the values cannot be beyond.
    """
    xs = sorted({x for pairs in series.values() for x, _ in pairs})
    ys = [y for pairs in series.values() for _, y in pairs]
    levels = _levels(min(ys), max(ys), limits)
    low, high = levels[0], levels[-1]
    first, last = math.log(xs[0]), math.log(xs[-1])

    def across(x: float) -> float:
        share = 0.5 if last == first else (math.log(x) - first) / (last - first)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for name, pairs in series.items():
        ordered = sorted(pairs)
        dots = tuple((across(x), down(y), f"{name}: {y_text(y)} at {x:.3g}") for x, y in ordered)
        lines.append(Line(name, " ".join(f"{x},{y}" for x, y, _ in dots), dots))
    y_ticks = tuple(Tick(down(y), y_text(y)) for y in levels)
    return Chart(title, x_name, _apart([Tick(across(x), f"{x:.3g}") for x in xs]), y_ticks, tuple(lines))


def _levels(low: float, high: float, limits: tuple[float, float]) -> list[float]:
    """Round values around some others, evenly spaced; apart enough to have different labels where those are equal."""
    span = max(high - low, 0.05 * max(abs(low), abs(high)), FINEST)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = max(FINEST, next(m * power for m in (1, 2, 5, 10) if m * power >= span / 4))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    rounded = [k * step for k in range(first, last + 1)]
    inside = [level for level in rounded if limits[0] - step / 2 < level < limits[1] + step / 2]
    return inside if len(inside) > 1 else rounded


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """The ticks whose labels do not touch the one before."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= 26:
            kept.append(tick)
    return tuple(kept)


def spark(curve: Pairs, channels: int) -> str:
    """A small error curve: kept channels to the right, the logarithm of the error upwards, as a polyline."""
    width, height = SPARK
    return " ".join(f"{width * k / channels:.1f},{spark_height(error, height):.1f}" for k, error in curve)


def spark_height(error: float, height: float = SPARK[1]) -> float:
    """Where an error lies in `spark`, from the top."""
    clipped = min(max(error, FLOOR), 1.0) if math.isfinite(error) else 1.0
    return abs(height * math.log(clipped) / math.log(FLOOR))  # 0, not -0
