"""What the user wants of single layers, from a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.plan import Layer

EXAMPLE = "write [ratio] or [channels], and under it lines such as conv1 = 2"
LARGEST = 2**20
"""Bytes of a file that a person may have written; and a number in it."""

Make = Callable[[str, Any], Layer]
TABLES: Mapping[str, tuple[type | tuple[type, ...], str, Make]] = MappingProxyType(
    {
        "ratio": ((int, float), "a number", lambda name, value: Layer(name, ratio=float(value))),
        "channels": (int, "a whole number", lambda name, value: Layer(name, channels=value)),
    }
)


def load_layers(path: str | os.PathLike[str]) -> tuple[Layer, ...]:
    """Read a file with the tables `[ratio]` and `[channels]`, entries `LAYER = NUMBER`.

    Args:
        path: The file.

    Returns:
        Its entries in their order.

    Raises:
        SubpruneError: It is missing, no TOML, or says something else.
    """
    where = os.fspath(path)
    layers: list[Layer] = []
    for table, entries in _read(where).items():
        if table not in TABLES or not isinstance(entries, dict):
            raise SubpruneError(f"has {table!r} outside of [ratio] and [channels]", where=where, remedy=EXAMPLE)
        layers += [_layer(table, name, value, where) for name, value in entries.items()]
    if not layers:
        raise SubpruneError("names no layer", where=where, remedy=EXAMPLE)
    return tuple(layers)


def _read(where: str) -> dict[str, Any]:
    try:
        with Path(where).open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise SubpruneError(f"holds more than {LARGEST} bytes", where=where, remedy=EXAMPLE)
        return tomllib.loads(text.decode("utf-8"))
    except FileNotFoundError as error:
        raise SubpruneError("no such file", where=where) from error
    except OSError as error:
        raise SubpruneError(f"cannot be read ({error.strerror})", where=where) from error
    except (ValueError, RecursionError) as error:
        raise SubpruneError(f"is not TOML ({first_line(error)})", where=where, remedy=EXAMPLE) from error


def _layer(table: str, name: str, value: Any, where: str) -> Layer:
    kind, noun, make = TABLES[table]
    if isinstance(value, dict):  # conv.1 = 2 is a table in a table
        what = f"[{table}] has {name} with a dot outside of quotes"
        raise SubpruneError(what, where=where, remedy=f'write "{name}.{next(iter(value), "")}"')
    if isinstance(value, bool) or not isinstance(value, kind):
        raise SubpruneError(f"[{table}] {name} = {str(value)[:40]} is not {noun}", where=where, remedy=EXAMPLE)
    if not (isinstance(value, int | float) and 1 <= value <= LARGEST):
        raise SubpruneError(f"[{table}] {name} is not between 1 and {LARGEST}", where=where, remedy=EXAMPLE)
    return make(name, value)
