"""`len(x)` in a forward -> `x.size(0)` in its graph.

Python wants a number for a length, so no tracer can follow it: fx refuses, and torch.export takes it for a constant.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn


def length(value: Any) -> Any:
    """What `len` is while a network is traced."""
    return value.size(0) if isinstance(value, (Tensor, fx.Proxy)) else len(value)


@contextmanager
def traceable(network: nn.Module) -> Iterator[None]:
    """Inside, the forwards of a network's modules find `length` where they call `len`, unless they have their own."""
    forwards = [inspect.unwrap(type(module).forward) for module in network.modules()]
    names = {id(found): found for forward in forwards if (found := getattr(forward, "__globals__", None)) is not None}
    free = [found for found in names.values() if "len" not in found and not _is_torch(found)]
    for found in free:
        found["len"] = length
    try:
        yield
    finally:
        for found in free:
            del found["len"]


def _is_torch(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).split(".")[0] == "torch"
