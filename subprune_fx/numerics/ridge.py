"""How strongly new weights are pulled towards the original ones."""

from __future__ import annotations

DEFAULT_RIDGE = 1e-3
"""Relative to the mean diagonal of the Gram matrix; see `passes.problems.Settings`."""
