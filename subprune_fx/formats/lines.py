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
