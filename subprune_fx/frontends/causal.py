"""Masks that torch's transformer layers are given are applied, and not looked at first.

Those layers compare a mask with the causal one, to name it so to a faster kernel. What a mask holds is data, which
neither tracer looks at; applied as it is, it gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.modules import transformer

_COMPARING = "_detect_is_causal_mask"


def _told(_mask: Tensor | None, is_causal: bool | None = None, _size: int | None = None) -> bool:
    """Whether the caller says that a mask is causal."""
    return is_causal is True


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Inside, only what is said to be causal is; in a release of torch without that comparison nothing changes."""
    known = getattr(transformer, _COMPARING, None)
    if known is None:
        yield
        return
    setattr(transformer, _COMPARING, _told)
    try:
        yield
    finally:
        setattr(transformer, _COMPARING, known)
