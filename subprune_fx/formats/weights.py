"""Weights: from a safetensors file, which can hold nothing else, and how large any may be."""

from __future__ import annotations

from collections.abc import Iterable

from safetensors.torch import load
from torch import Tensor

from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.npy import check_memory
from subprune_fx.plan import FORMAT


def check_weights(tensors: Iterable[Tensor], where: str) -> None:
    """Refuse tensors that are too large: one number may claim to be any number of them, by strides of 0.

    Args:
        tensors: As they were read, of any type.
        where: Their file, for the error.

    Raises:
        SubpruneError: As float32 they would take more than half of this machine's memory.
    """
    need = sum(4 * tensor.numel() for tensor in tensors if not tensor.is_meta)
    check_memory(need, where, "what it holds", "save it again, or use a machine with more memory")


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
