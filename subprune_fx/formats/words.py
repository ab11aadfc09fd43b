"""Figures as people read them; nothing for what is not there."""

from __future__ import annotations


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
