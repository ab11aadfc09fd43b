"""Sizes of memory and files: as people write them, and the largest ONNX file."""

from __future__ import annotations

import re

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes of the largest ONNX model: a protobuf message holds less than 2 GiB, and some room is left for the graph."""

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


def size_text(size: int) -> str:
    """A number of bytes for people.

    >>> size_text(4096), size_text(3 * 10**12)
    ('4.1 kB', '3,000.0 GB')
    """
    unit, word = next(row for row in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes")) if size >= row[0] - 1)
    return f"{size / unit:,.1f} {word}" if unit > 1 else f"{size} {word}"
