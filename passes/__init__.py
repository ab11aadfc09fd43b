"""The compiler passes, one stage a file; `PrunePass` is all of them as one pass of torch.fx's pass manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "subprune_fx.passes":
    raise ImportError("import subprune_fx.passes, not passes")

if TYPE_CHECKING:
    from subprune_fx.passes.fx_pass import PrunePass

__all__ = ["PrunePass"]


def __getattr__(name: str) -> Any:
    """Import on first use: the pass needs the library's front door, which needs the other passes."""
    if name != "PrunePass":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from subprune_fx.passes.fx_pass import PrunePass  # noqa: PLC0415

    return PrunePass
