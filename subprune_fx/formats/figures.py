"""Figures as people read them; nothing for what is not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from subprune_fx.report import Stage

Row = TypeVar("Row")

AGREEMENT = "same class, calibration inputs"
CHANGE = "change of the output, RMS"
"""What `Report.change` is called."""


def ratio(before: float | None, after: float | None) -> str:
    """How many times smaller."""
    return "" if before is None or not after or after <= 0 else f"{before / after:.2f}x"


def size(count: int | None) -> str:
    """Bytes."""
    if count is None:
        return ""
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.2f} MB"


def milliseconds(value: float | None) -> str:
    """A latency."""
    return "" if value is None else f"{value:.3f} ms"


def percent(value: float | None) -> str:
    """A fraction."""
    return "" if value is None else f"{100 * value:.2f} %"


def count(value: int | None) -> str:
    """A number of things."""
    return "" if value is None else f"{value:,}"


def error(value: float) -> str:
    """A relative error; that of selectors that measure none is not a number."""
    return "" if math.isnan(value) else f"{value:.4f}"


def scientific(value: float) -> str:
    """Two digits and a power of ten; 0 is 0."""
    return f"{value:.1e}" if value else "0"


def columns(rows: Sequence[Row], cells: Mapping[str, Callable[[Row], str]]) -> dict[str, list[str]]:
    """By heading, what the rows have there; columns without a figure are left out."""
    found = {heading: [cell(row) for row in rows] for heading, cell in cells.items()}
    return {heading: column for heading, column in found.items() if any(column)}


STAGES: Mapping[str, Callable[[Stage], str]] = {
    "file size": lambda row: size(row.bytes),
    "latency": lambda row: milliseconds(row.latency_ms),
    "same class": lambda row: percent(row.agreement),
    "output change": lambda row: percent(row.change),
    "accuracy": lambda row: percent(row.accuracy),
}
"""Columns of the table of stages."""
