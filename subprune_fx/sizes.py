"""Sizes of memory as people write them."""

from __future__ import annotations

import re

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def size_of(text: str) -> int:
    """Bytes of `4GiB`, `500 MB` or `1000000`.

    Raises:
        ValueError: It is no positive size.

    >>> size_of("1.5KiB")
    1536
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS or float(found[1]) <= 0:
        message = f"{text!r} is not a size such as 4GiB or 500MB"
        raise ValueError(message)
    return int(float(found[1]) * UNITS[found[2].upper()])
