"""Goals beside a ratio: they are met by measuring what several ratios give, all from one calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.passes.by_sample import tensors_of
from subprune_fx.passes.compiled import Compiled
from subprune_fx.passes.outputs import agreement, check_classes, check_scores, scores_at
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.search import bracket

HELD_OUT = 4
"""One calibration input in so many is held out and measured on, where there are no verification inputs.

A network agrees more with the original on the inputs it was fitted on: LeNet at ratio 8 differs on 0.8 % of those and
on 1.8 % of others."""

FIRST = 2.0
"""The ratio that is tried first."""
Drop = Callable[[nn.Module], float]
"""From a network to what it has lost, in percentage points."""


def set_aside(inputs: Inputs, labels: Tensor | None, least: int) -> tuple[Inputs, Tensor | None, Inputs]:
    """Calibration inputs and labels less every `HELD_OUT`th, and those.

    Args:
        inputs: Calibration inputs, (samples, ...).
        labels: Their classes.
        least: Most samples that one side may not do without: the size of a batch.

    Raises:
        SubpruneError: There are too few to divide.
    """
    count = len(inputs)
    held = torch.arange(count) % HELD_OUT == HELD_OUT - 1
    if int(held.sum()) < least:
        what = f"{count} inputs are too few to measure on every {HELD_OUT}th"
        raise SubpruneError(what, where="max_drop", remedy="give more, or labelled ones to verify on")
    kept = (~held).nonzero()[:, 0]
    return inputs[kept], None if labels is None else labels[kept], inputs[held.nonzero()[:, 0]]


def drop_of(compiler: Compiler, aside: Inputs | None) -> Drop:
    """Loss of accuracy against the original network, or of agreement with it.

    Args:
        compiler: Its verification inputs are measured on, if there are any.
        aside: Inputs without labels to measure agreement on, where there are none.

    Raises:
        SubpruneError: The output holds no class scores.
    """
    original = compiler.network.graph_module
    if aside is None:
        assert compiler.verification is not None
        batches, labels = compiler.verification
    else:
        batches, labels = compiler.cut(compiler.team.share(aside)), None
    outputs = _run(original, batches)
    scores = tensors_of(outputs[0])[0 if labels else scores_at(outputs, compiler.team)]
    check_scores(scores, len(batches[0]), where="max_drop", remedy="give a ratio instead")
    for classes in labels or ():
        check_classes(classes, scores)
    rate = agreement(outputs, labels, compiler.team)
    before = rate(outputs)
    return lambda module: round(100 * (before - rate(_run(module, batches))), 9)  # 97 - 96 is 1, not 1 + 1e-14


def within(compiler: Compiler, drop: Drop, limit: float) -> Compiled:
    """The smallest network found whose drop is at most `limit` points.

    Args:
        compiler: Calibrated.
        drop: What is measured.
        limit: In percentage points.

    Raises:
        SubpruneError: Not even the mildest pruning tried stays within the limit.
    """
    best: list[Compiled] = []

    def measure(ratio: float) -> float:
        compiled = compiler.compile(ratio)
        found = drop(compiled.module)
        if found <= limit and (not best or ratio > best[0].ratio):
            best[:] = [dataclasses.replace(compiled, drop=found)]
        return found

    found = bracket(measure, limit, origin=0.0, start=FIRST, most=compiler.most)
    if found.below is None:
        least = found.tried[-1]
        what = f"no smaller network stays within a drop of {limit:g} points: ratio {least.ratio:.2f} loses"
        raise SubpruneError(f"{what} {least.value:.2f}", remedy="allow more, or give more calibration inputs")
    return dataclasses.replace(best[0], searched=found.tried)


def _run(module: nn.Module, batches: Sequence[Inputs]) -> list[object]:
    with torch.no_grad():
        return [module(batch) for batch in batches]
