"""The library's front door: `prune`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.onnx_graph import source_of
from subprune_fx.frontends.onnx_static import fixed_batch, settle
from subprune_fx.numerics.ridge import DEFAULT_RIDGE
from subprune_fx.passes.budget import BUDGETS
from subprune_fx.passes.flops import flops
from subprune_fx.passes.outputs import agreement, batches_of, first_tensor
from subprune_fx.passes.pipeline import Compiled, Compiler, Options, Progress
from subprune_fx.passes.problems import Settings
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.size import TARGETS
from subprune_fx.passes.sweep import VARIANTS
from subprune_fx.plan import Plan
from subprune_fx.report import Cost, FrozenRow, GroupRow, Report
from subprune_fx.selectors import DEFAULT_SELECTOR, LABELLED, SELECTORS, Need

EVALUATION_BATCH = 256

Array = Tensor | NDArray[Any]


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


def prune(
    model: nn.Module,
    calibration: Array,
    *,
    ratio: float | None = None,
    keep: float | None = None,
    select: str = DEFAULT_SELECTOR,
    variant: str = "asym",
    budget: str | None = None,
    target: str = "params",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    reweight: bool = True,
    intercept: bool = True,
    ridge: float = DEFAULT_RIDGE,
    stochastic: float | None = None,
    labels: Array | None = None,
    training: tuple[Array, Array] | None = None,
    verification: tuple[Array, Array] | None = None,
    evaluation: tuple[Array, Array] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Make a trained network smaller from a few hundred unlabelled inputs.

    Args:
        model: The network; unchanged.
        calibration: Inputs as the network takes them, float32, (samples, ...).
        ratio: Size before over size after, above 1; the result meets it. This or `keep`.
        keep: In place of a ratio: the fraction of its channels that every group keeps, in (0, 1); no budget is needed.
        select: How units are chosen, a key of `subprune_fx.selectors.SELECTORS`.
        variant: Which inputs consumers are fitted on (paper section 5.1): `asym`, the pruned network's, towards the
            original's outputs; `seq`, the pruned network's; `layer`, the original's.
        budget: How the ratio is shared out among groups, a key of `passes.budget.BUDGETS`; None for the selector's
            own rule, where it has one, or the default.
        target: What the ratio counts: `params`, or `flops`, the multiply-adds of one sample.
        only: Patterns (`fnmatch`) of layers to prune, as the report names them; none: all that can be.
        skip: Patterns of layers to leave alone.
        reweight: Refit the weights of layers that read pruned channels (paper eq. 4).
        intercept: Refit their biases too.
        ridge: Pull of new weights towards the original ones, relative to the mean diagonal of the Gram matrix.
        stochastic: Epsilon of stochastic greedy (paper App. B.3), in (0, 1); None for exact greedy.
        labels: Class of each calibration input, (samples,); the `accuracy` budget uses them, and some selectors
            cannot do without.
        training: More labelled inputs, which only the selector `layergreedyfs-fd` reads.
        verification: Labelled inputs on which the `accuracy` budget measures, instead of the calibration inputs.
        evaluation: Inputs and labels whose accuracy the report states; decides nothing.
        seed: Of everything random.
        progress: Told (stage, done, total).

    Returns:
        The smaller network, the plan and the report.

    Raises:
        SubpruneError: An argument is unusable, the network cannot be traced or has nothing to prune, or the ratio is
            out of reach (the message says the largest reachable one).
    """
    if (ratio is None) == (keep is None):
        raise SubpruneError("needs a ratio or a fraction of the channels to keep, one of the two", remedy="ratio=4")
    (found,) = prune_each(
        model,
        calibration,
        ratios=() if ratio is None else (ratio,),
        keeps=() if keep is None else (keep,),
        select=select,
        variant=variant,
        budget=budget,
        target=target,
        only=only,
        skip=skip,
        reweight=reweight,
        intercept=intercept,
        ridge=ridge,
        stochastic=stochastic,
        labels=labels,
        training=training,
        verification=verification,
        evaluation=evaluation,
        seed=seed,
        progress=progress,
    )
    return found


def prune_each(
    model: nn.Module,
    calibration: Array,
    *,
    ratios: Sequence[float] = (),
    keeps: Sequence[float] = (),
    select: str = DEFAULT_SELECTOR,
    variant: str = "asym",
    budget: str | None = None,
    target: str = "params",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    reweight: bool = True,
    intercept: bool = True,
    ridge: float = DEFAULT_RIDGE,
    stochastic: float | None = None,
    labels: Array | None = None,
    training: tuple[Array, Array] | None = None,
    verification: tuple[Array, Array] | None = None,
    evaluation: tuple[Array, Array] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Pruned]:
    """`prune` for several goals with one calibration; results come one by one, each from the original network.

    Args:
        model: See `prune`.
        calibration: See `prune`.
        ratios: See `prune`.
        keeps: See `prune`.
        select: See `prune`.
        variant: See `prune`.
        budget: See `prune`.
        target: See `prune`.
        only: See `prune`.
        skip: See `prune`.
        reweight: See `prune`.
        intercept: See `prune`.
        ridge: See `prune`.
        stochastic: See `prune`.
        labels: See `prune`.
        training: See `prune`.
        verification: See `prune`.
        evaluation: See `prune`.
        seed: See `prune`.
        progress: See `prune`.

    Yields:
        What `prune` returns, in the order of `ratios`, then of `keeps`.

    Raises:
        SubpruneError: See `prune`.
    """
    _check_options(ratios, keeps, variant, budget, ridge, stochastic)
    _check_target(target)
    _check_selector(select, labels, training)
    inputs = _inputs(calibration, "calibration")
    known = None if labels is None else _labels(labels, len(inputs), "labels")
    more = None if training is None else _evaluation(*training, "training")
    apart = None if verification is None else _evaluation(*verification, "verification")
    held_out = None if evaluation is None else _evaluation(*evaluation, "evaluation")
    options = Options(
        select=select,
        variant=variant,
        budget=budget,
        target=target,
        only=tuple(only),
        skip=tuple(skip),
        reweight=reweight,
        settings=Settings(intercept=intercept, ridge=ridge),
        stochastic=stochastic,
        seed=seed,
    )
    compiler = Compiler(settle(model, inputs), inputs, options, known, more, apart, progress)
    original = compiler.network.graph_module
    before = None if held_out is None else accuracy(original, *held_out)
    goals = (*(partial(compiler.compile, ratio) for ratio in ratios),)
    goals += (*(partial(compiler.compile_fraction, keep) for keep in keeps),)
    for goal in goals:
        compiled = goal()
        start = time.perf_counter()
        smaller = apply(compiled.plan, original)
        compiled.seconds["rewrite"] = time.perf_counter() - start
        report = _report(compiler, compiled, smaller, inputs)
        if held_out is not None:
            after = accuracy(smaller, *held_out)
            report = dataclasses.replace(report, accuracy_before=before, accuracy_after=after)
        yield Pruned(smaller, compiled.plan, report)


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, 0 to 1.

    Args:
        module: A classifier in eval mode: its first output holds class scores on its last axis.
        inputs: (samples, ...).
        labels: (samples,), int64.
    """
    hits = seen = 0
    fixed = fixed_batch(module)
    batches = (batches_of(t, fixed or EVALUATION_BATCH, whole=fixed is not None) for t in (inputs, labels))
    with torch.no_grad():
        for x, y in zip(*batches, strict=True):
            hits += int((first_tensor(module(x)).argmax(-1) == y).sum())
            seen += len(y)
    return hits / seen


def cost(module: nn.Module, example: Tensor) -> Cost:
    """Parameters, and multiply-adds of one sample."""
    parameters = sum(p.numel() for p in module.parameters())
    if isinstance(module, fx.GraphModule) and source_of(module) is not None:
        return Cost(parameters, sum(count for count, _ in flops(module, example).values()))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(example)
    return Cost(parameters, counter.get_total_flops() // 2 // len(example))


def _report(compiler: Compiler, compiled: Compiled, smaller: fx.GraphModule, inputs: Tensor) -> Report:
    network, options = compiler.network, compiler.options
    channels = network.channels
    decided = {decision.group: decision for decision in compiled.plan.decisions}
    rows = [
        GroupRow(
            group.name,
            group.units.size,
            len(decided[group.name].kept),
            decided[group.name].error,
            tuple(channels.contractions[name].module for name in group.consumers),
        )
        for group in channels.groups
    ]
    example = inputs[: fixed_batch(smaller) or 1]
    scores = _is_score(first_tensor(compiler.outputs[0]))
    settings = {
        "select": options.select,
        "variant": options.variant,
        "budget": compiler.rule,
        "target": options.target,
        "reweight": options.reweight,
        "intercept": options.settings.intercept,
        "ridge": options.settings.ridge,
        "stochastic": options.stochastic,
        "seed": options.seed,
        "calibration inputs": len(inputs),
    }
    return Report(
        ratio=compiled.ratio,
        before=cost(network.graph_module, example),
        after=cost(smaller, example),
        groups=tuple(rows),
        frozen=tuple(FrozenRow(item.name, item.channels, item.reason) for item in channels.frozen),
        agreement=agreement(compiler.outputs, None)(compiled.outputs) if scores else None,
        settings=tuple((name, str(value)) for name, value in settings.items()),
        seconds=tuple(compiled.seconds.items()),
    )


def _is_score(output: Tensor) -> bool:
    return output.ndim == 2 and output.shape[1] > 1


def _check_options(
    ratios: Sequence[float],
    keeps: Sequence[float],
    variant: str,
    budget: str | None,
    ridge: float,
    stochastic: float | None,
) -> None:
    for ratio in ratios:
        if not math.isfinite(ratio) or ratio <= 1:
            what = f"ratio {ratio} is not a number above 1"
            raise SubpruneError(what, remedy="8 keeps an eighth of the parameters")
    for keep in keeps:
        if not 0 < keep < 1:
            raise SubpruneError(f"keep {keep} is not between 0 and 1", remedy="0.5 keeps half of the channels")
    if variant not in VARIANTS:
        raise SubpruneError(f"no variant {variant!r}", remedy=f"use one of {', '.join(VARIANTS)}")
    if budget is not None and budget not in BUDGETS:
        raise SubpruneError(f"no budget rule {budget!r}", remedy=f"use one of {', '.join(BUDGETS)}")
    if not math.isfinite(ridge) or ridge < 0:
        raise SubpruneError(f"ridge {ridge} is not a number of at least 0")
    if stochastic is not None and not 0 < stochastic < 1:
        raise SubpruneError(f"stochastic {stochastic} is not between 0 and 1")


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise SubpruneError(f"no target {target!r}", remedy=f"use one of {', '.join(TARGETS)}")


def _check_selector(select: str, labels: Array | None, training: tuple[Array, Array] | None) -> None:
    if select not in SELECTORS:
        raise SubpruneError(f"no selector {select!r}", remedy=f"use one of {', '.join(SELECTORS)}")
    needs = SELECTORS[select].needs
    if Need.TRAINING in needs and training is None:
        what = f"selector {select} needs labelled training inputs, and there are none"
        raise SubpruneError(what, remedy="give training=(x, y) (on the command line, --train XY.npz)")
    if Need.TRAINING not in needs and labels is None and needs & LABELLED:
        what = f"selector {select} needs the class of each calibration input, and there are none"
        raise SubpruneError(what, remedy="give labels (on the command line, y beside x in the --calib file)")


def _inputs(value: Array, where: str) -> Tensor:
    tensor = torch.as_tensor(value).detach()
    if tensor.dtype is torch.float64 and isinstance(value, np.ndarray):
        raise SubpruneError("is float64, the network takes float32", where=where, remedy="use .astype('float32')")
    if tensor.ndim == 0 or len(tensor) == 0:
        raise SubpruneError("holds no samples", where=where, remedy="the first axis counts the samples")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise SubpruneError("holds NaN or infinite values", where=where, remedy="clean the inputs")
    return tensor


def _evaluation(x: Array, y: Array, where: str) -> tuple[Tensor, Tensor]:
    inputs = _inputs(x, where)
    return inputs, _labels(y, len(inputs), f"{where} labels")


def _labels(value: Array, samples: int, where: str) -> Tensor:
    tensor = torch.as_tensor(value).detach()
    if tensor.is_floating_point() or tensor.shape != (samples,):
        raise SubpruneError(
            f"has shape {tuple(tensor.shape)} and type {tensor.dtype}",
            where=where,
            remedy=f"give {samples} integers",
        )
    return tensor.long()
