"""The library's front door: `prune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from subprune_fx.errors import SubpruneError
from subprune_fx.numerics.ridge import DEFAULT_RIDGE
from subprune_fx.passes.budget import BUDGETS, DEFAULT_BUDGET
from subprune_fx.passes.pipeline import Compiled, Options, Progress, agreement, compile_plan, first_tensor
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply
from subprune_fx.plan import Plan
from subprune_fx.report import Cost, FrozenRow, GroupRow, Report

VARIANTS = ("asym", "seq", "layer")


class Pruned(NamedTuple):
    """What `prune` returns.

    Attributes:
        module: The smaller network, a graph module.
        plan: What was done; applies to any instance of the same network.
        report: Sizes, errors, agreement, refusals.
    """

    module: fx.GraphModule
    plan: Plan
    report: Report
