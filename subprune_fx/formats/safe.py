"""Weights from a safetensors file, which can hold nothing else."""

from __future__ import annotations

from safetensors.torch import load
from torch import Tensor

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.lines import first_line
from subprune_fx.plan import FORMAT


def load_weights(data: bytes, where: str) -> dict[str, Tensor]:
    """Name -> tensor.

    Args:
        data: The whole file.
        where: Its name, for errors.

    Raises:
        SubpruneError: It is damaged, a plan, or empty.
    """
    if FORMAT.encode() in data[: 8 + int.from_bytes(data[:8], "little")]:
        raise SubpruneError(
            "is a plan, not a network", where=where, remedy="pass it as --plan, and its network as MODEL"
        )
    try:
        found = load(data)
    except Exception as error:
        what = f"is no safetensors file, or a damaged one ({first_line(error)})"
        raise SubpruneError(what, where=where, remedy="copy or save it again") from error
    if not found:
        raise SubpruneError("holds no weights", where=where, remedy="save it again")
    return found
