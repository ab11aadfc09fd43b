"""What options may be. Apart from the tables behind the names, so that the command line answers without torch.

Tests hold the names to the keys of those tables.
"""

from __future__ import annotations

SELECTORS = (
    *("inchange", "stochastic", "layergreedyfs", "layergreedyfs-fd", "layersampling", "actgrad", "layeractgrad"),
    *("layerweightnorm", "weightnorm", "random", "layerrandom"),
)
"""Rows of `subprune_fx.selectors.SELECTORS`."""

VARIANTS = ("asym", "seq", "layer")
"""Which inputs consumers are fitted on (paper section 5.1), see `subprune_fx.arguments.Choices`."""

BUDGETS = ("output", "accuracy", "error", "uniform")
"""Rows of `passes.budgets.BUDGETS`."""

TARGETS = ("params", "flops", "size", "latency")
"""Rows of `passes.size.TARGETS`, and of `MEASURED` there."""

PRECISIONS = ("float32", "bf16", "tf32")
"""What forward passes over the calibration inputs may be computed in; rows of `passes.forward.WITHIN`."""
DEFAULT_PRECISION = "float32"

FILES = (".onnx", ".pt2", ".pt")
"""Formats whose bytes the target `size` counts: those that hold a network."""

QUANTISED = ("int8",)
"""What the command writes beside an `.onnx` file."""

SEEDS = 2**63
"""How many seeds there are, from 0: generators take signed numbers of 64 bits."""
