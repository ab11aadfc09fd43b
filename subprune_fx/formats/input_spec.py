"""What a network takes, and which arrays of a file that is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Sequence

import torch
from torch import nn

from subprune_fx.errors import SubpruneError

Shape = tuple[int | None, ...]

ONE = "x"
"""What an array is called that is the only input, whatever the network calls it."""
LABELS = "y"


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of a network, first axis = sample.

    Attributes:
        name: What its array is called in a file.
        required: Whether the network runs only with it.
        accepts: Shapes that it may have, None for any size; None where that is not known.
        sample: A shape that it can have; None where that is not known.
        dtype: Its type; None where that is not known.
        argument: The argument of `forward` that it is; empty: `name`.
    """

    name: str
    required: bool = True
    accepts: Shape | None = None
    sample: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    argument: str = ""

    @property
    def keyword(self) -> str:
        """The argument of `forward`."""
        return self.argument or self.name


def arguments_of(module: nn.Module) -> tuple[InputSpec, ...]:
    """The arguments of a network's `forward`, by its signature; none where it has none to read."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    empty = inspect.Parameter.empty
    return tuple(InputSpec(item.name, required=item.default is empty) for item in parameters if item.kind in kinds)


def required(takes: Sequence[InputSpec]) -> list[str]:
    """Names of the inputs that the network cannot do without."""
    return [taken.name for taken in takes if taken.required]


def pair(names: Collection[str], takes: Sequence[InputSpec], where: str) -> list[tuple[str, InputSpec]]:
    """Which of a file's arrays are the network's inputs, in the network's order; the first rule that fits decides.

    Arrays are named after the network's inputs (`y` is one only where the network requires it: it is the labels); or
    the only one is called `x`; or they are called `arr_0`, `arr_1`... (`numpy.savez` without names) in its order.

    Args:
        names: What is in the file.
        takes: What the network takes; none: not known, and it takes one.
        where: The file, for errors.

    Raises:
        SubpruneError: A required input is missing, or none is there.
    """
    needed = required(takes)
    named = [(taken.name, taken) for taken in takes if taken.name in names and (taken.required or taken.name != LABELS)]
    if named and {name for name, _ in named}.issuperset(needed):
        return named
    if len(needed) < 2 and ONE in names:
        return [(ONE, takes[0] if takes else InputSpec(ONE))]
    places = [name for name in (f"arr_{place}" for place in range(len(names))) if name in names]
    if places and len(needed) <= len(places) <= max(len(takes), 1):
        return list(zip(places, takes or [InputSpec(ONE)], strict=False))
    raise _missing(names, takes, where)


def _missing(names: Collection[str], takes: Sequence[InputSpec], where: str) -> SubpruneError:
    needed, found = required(takes), ", ".join(sorted(names)[:8]) or "none"
    if len(needed) < 2:
        return SubpruneError(f"has no array {ONE!r} (arrays found: {found})", where=where, remedy=how_to_save(takes))
    lacking = ", ".join(repr(name) for name in needed if name not in names)
    what = f"the network takes {len(needed)} inputs, and there is no array {lacking} (arrays found: {found})"
    return SubpruneError(what, where=where, remedy=how_to_save(takes))


def how_to_save(takes: Sequence[InputSpec]) -> str:
    """The numpy call that makes a file of inputs for this network."""
    needed = required(takes)
    if len(needed) < 2:
        return 'save it with numpy.savez(path, x=inputs.astype("float32"))'
    return f"save them with numpy.savez(path, {', '.join(f'{name}=...' for name in needed)})"
