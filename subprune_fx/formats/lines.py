"""Other libraries' errors in one line."""

from __future__ import annotations

LIMIT = 200


def first_line(error: BaseException) -> str:
    r"""The first line of an exception's message, cut to `LIMIT`; its type where it has none.

    >>> first_line(ValueError("bad size\nsee the manual"))
    'bad size'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    return lines[0][:LIMIT] if lines else type(error).__name__


def size_text(size: int) -> str:
    """A number of bytes for people.

    >>> size_text(4096), size_text(3 * 10**12)
    ('4.1 kB', '3,000.0 GB')
    """
    unit, word = next(row for row in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes")) if size >= row[0] - 1)
    return f"{size / unit:,.1f} {word}" if unit > 1 else f"{size} {word}"
