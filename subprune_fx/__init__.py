"""subprune_fx: data-efficient structured pruning as a compiler pass."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subprune_fx.api import Pruned, prune, prune_each
    from subprune_fx.errors import SubpruneError, ValidationError
    from subprune_fx.explanation import Explanation
    from subprune_fx.passes.data_free import synthetic_inputs
    from subprune_fx.passes.diagnose import Diagnosis, diagnose
    from subprune_fx.passes.explain import explain
    from subprune_fx.passes.rewrite import apply
    from subprune_fx.plan import Layer, Plan
    from subprune_fx.repeating import repeat
    from subprune_fx.report import Report
    from subprune_fx.saving import save

__all__ = [
    "Diagnosis",
    "Explanation",
    "Layer",
    "Plan",
    "Pruned",
    "Report",
    "SubpruneError",
    "ValidationError",
    "apply",
    "diagnose",
    "explain",
    "prune",
    "prune_each",
    "repeat",
    "save",
    "synthetic_inputs",
]

_HOME = {
    "Diagnosis": "subprune_fx.passes.diagnose",
    "Explanation": "subprune_fx.explanation",
    "Layer": "subprune_fx.plan",
    "Plan": "subprune_fx.plan",
    "Pruned": "subprune_fx.api",
    "Report": "subprune_fx.report",
    "SubpruneError": "subprune_fx.errors",
    "ValidationError": "subprune_fx.errors",
    "apply": "subprune_fx.passes.rewrite",
    "diagnose": "subprune_fx.passes.diagnose",
    "explain": "subprune_fx.passes.explain",
    "prune": "subprune_fx.api",
    "prune_each": "subprune_fx.api",
    "repeat": "subprune_fx.repeating",
    "save": "subprune_fx.saving",
    "synthetic_inputs": "subprune_fx.passes.data_free",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `subprune-compile --help` must not wait for torch."""
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_HOME[name]), name)
