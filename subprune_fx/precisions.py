"""In what forward passes over the calibration inputs may be computed."""

from __future__ import annotations

PRECISIONS = ("float32", "bf16", "tf32")
DEFAULT_PRECISION = "float32"
