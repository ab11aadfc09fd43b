"""What the passes found for one ratio, and what distillation makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from subprune_fx.bundle import Inputs, joined
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.distil import distil, trained
from subprune_fx.passes.options import Options
from subprune_fx.plan import Plan
from subprune_fx.report import Step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the passes found for one ratio.

    Attributes:
        ratio: Size before over size after, at least.
        plan: What to do to the network.
        module: The network with that done.
        align: What the widths of pruned layers are multiples of; None: see `passes.steps.multiples`.
        outputs: The pruned network's outputs on the calibration inputs, by batch.
        seconds: Wall time by stage, from the start of the calibration.
        searched: Measurements that led to the ratio.
        drop: What was measured of this network, in percentage points.
        distilled: Steps of distillation that its weights have kept; None: it was not asked for.
    """

    ratio: float
    plan: Plan
    module: fx.GraphModule
    outputs: list[Any]
    seconds: dict[str, float]
    align: int | None = None
    searched: tuple[Step, ...] = ()
    drop: float | None = None
    distilled: int | None = None


def distilled(
    found: Compiled,
    original: fx.GraphModule,
    batches: Sequence[Inputs],
    judges: Inputs | None,
    options: Options,
    tick: Tick,
) -> Compiled:
    """The same with weights trained to give what the original network gives, as far as `judges` like them better.

    Args:
        found: What was found; its module is changed.
        original: The network before.
        batches: Calibration inputs.
        judges: Inputs by which weights are kept; None: the calibration inputs.
        options: The user's choices.
        tick: Told (done, total).
    """
    inputs = joined(batches)
    judges = inputs if judges is None else judges
    kept = distil(found.module, original, inputs, judges, options.distil, options.seed, tick)
    if not kept:
        return dataclasses.replace(found, distilled=0)
    with torch.no_grad():
        outputs = [found.module(batch) for batch in batches]
    return dataclasses.replace(found, plan=trained(found.plan, found.module, original), outputs=outputs, distilled=kept)
