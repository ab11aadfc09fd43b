"""How values of options are read from the command line: each function is a click callback. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence

import click

from subprune_fx.sizes import size_of

PROGRAM = "subprune-compile"
LARGEST_IMAGE = 2**14
LEAST_MEMORY = 2**20


def ratio(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A number above 1."""
    del context, option
    if value is not None and (not math.isfinite(value) or value <= 1):
        raise click.BadParameter(f"{value:g} is not a number above 1 (8 keeps an eighth of the parameters).")
    return value


def ratios(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...]:
    """`2,4,8`: different numbers above 1."""
    if value is None:
        return ()
    try:
        found = tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of ratios, such as 2,4,8.") from None
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{value!r} names a ratio twice.")
    for one in found:
        ratio(context, option, one)
    return found


def points(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Percentage points."""
    del context, option
    if value is not None and not 0 < value < 100:
        raise click.BadParameter(f"{value:g} is not between 0 and 100 percentage points.")
    return value


def fraction(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A number between 0 and 1."""
    del context, option
    if value is not None and not 0 < value < 1:
        raise click.BadParameter(f"{value:g} is not between 0 and 1.")
    return value


def memory(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """`4GiB`, in bytes."""
    del context, option
    if value is None:
        return None
    try:
        found = size_of(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error
    if found < LEAST_MEMORY:
        raise click.BadParameter(f"{value!r} is less than 1 MiB; write a unit, such as 4GiB.")
    return found


def shapes(context: click.Context, option: click.Parameter, value: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """`1,3,32,32`, once for each input."""
    del context, option
    found = tuple(map(_integers, value))
    for text, sizes in zip(value, found, strict=True):
        if not sizes:
            raise click.BadParameter(f"{text!r} is not a shape with its batch axis first, such as 1,3,32,32.")
    return found


def image_size(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`224`, or `224x320`, height and width."""
    del context, option
    if value is None:
        return None
    sizes = _integers(value)
    if len(sizes) not in (1, 2) or max(sizes) > LARGEST_IMAGE:
        raise click.BadParameter(f"{value!r} is not a size such as 224 or 224x320 (height, width).")
    return sizes


def by_channel(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406`; standard deviations are above 0."""
    del context
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value.split(","))
    except ValueError:
        numbers = ()
    wrong = option.name == "std" and any(number <= 0 for number in numbers)
    if not numbers or wrong or not all(math.isfinite(number) for number in numbers):
        raise click.BadParameter(f"{value!r} is not a number for each channel, such as 0.485,0.456,0.406.")
    return numbers


def version(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Say the version, and no more."""
    del option
    if not value or context.resilient_parsing:
        return
    try:
        found = importlib.metadata.version("subprune_fx")
    except importlib.metadata.PackageNotFoundError:
        found = "(not installed)"
    click.echo(f"{PROGRAM} {found}")
    context.exit()


def _integers(value: str) -> tuple[int, ...]:
    """Positive numbers; none where it holds anything else."""
    try:
        sizes = tuple(int(size) for size in value.replace("x", ",").split(","))
    except ValueError:
        return ()
    return sizes if min(sizes) > 0 else ()
