"""All passes in order: from a module and calibration inputs to a plan and its error, ready to rewrite."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.numerics.greedy import Selection, greedy
from subprune_fx.passes.budget import Budget, Keep, Trial, allot
from subprune_fx.passes.calibrate import calibrate
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.problems import Settings, blocks
from subprune_fx.passes.size import SizeModel
from subprune_fx.passes.sweep import Sweep, Variant
from subprune_fx.passes.trials import Metric, Reweighter, trials
from subprune_fx.plan import Plan

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chooses.

    Attributes:
        ratio: Parameters before over parameters after, at least.
        variant: `asym`, `seq` or `layer`.
        budget: A rule of `passes.budget.BUDGETS`.
        reweight: False leaves consumers' weights as they are.
        settings: How least squares are posed.
        stochastic: Epsilon of stochastic greedy (paper App. B.3); None for exact greedy.
        seed: Of everything random.
        trial_samples: Most inputs used to measure one group pruned alone.
        batch: Samples a forward pass.
    """

    ratio: float
    variant: Variant = "asym"
    budget: str = "output"
    reweight: bool = True
    settings: Settings = Settings()
    stochastic: float | None = None
    seed: int = 0
    trial_samples: int = 256
    batch: int = 128


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the passes found.

    Attributes:
        network: The analysed network.
        plan: What to do to it.
        outputs: The original network's outputs on the calibration inputs, by batch.
        pruned_outputs: The pruned network's.
        seconds: Wall time by stage.
    """

    network: FxNetwork
    plan: Plan
    outputs: list[Any]
    pruned_outputs: list[Any]
    seconds: dict[str, float]


def compile_plan(
    module: nn.Module,
    calibration: Tensor,
    options: Options,
    labels: Tensor | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Run every pass up to the plan.

    Args:
        module: The network, unchanged.
        calibration: Inputs, (samples, ...).
        options: The user's choices.
        labels: Class of each calibration input, for the accuracy budget; None compares with the original network's
            own predictions.
        progress: Told (stage, done, total).
    """
    clock = _Clock()
    report = progress or (lambda _stage, _done, _total: None)
    batches = list(calibration.split(options.batch))
    with clock("dependencies"):
        network = analyse(module, calibration[:2])
    with clock("calibrate"):
        moments, outputs = calibrate(network, batches, lambda done, total: report("calibrate", done, total))
    with clock("select"):
        reweighter = Reweighter(network, moments, options.settings, reweight=options.reweight)
        curves = _curves(network, reweighter, options)
    orders = {name: curve.order.numpy() for name, curve in curves.items()}
    with clock("budget"):
        keep = _keep(network, reweighter, curves, orders, batches, outputs, labels, options, report)
    with clock("sweep"):
        sweep = Sweep(
            network,
            keep,
            orders,
            variant=options.variant,
            settings=options.settings,
            reweight=options.reweight,
        )
        plan, pruned = sweep.run(batches, lambda done, total: report("sweep", done, total))
    return Compiled(network, plan, outputs, pruned, clock.seconds)


def _curves(network: FxNetwork, reweighter: Reweighter, options: Options) -> dict[str, Selection]:
    """Nested order and error curve of every group by the original network's moments."""
    generator = torch.Generator().manual_seed(options.seed)
    found = {}
    for group in network.channels.groups:
        parts = [
            block
            for name in group.consumers
            for block in blocks(group, reweighter.problems[name], network.channels)
        ]
        found[group.name] = greedy(parts, len(group.units), epsilon=options.stochastic, generator=generator)
    return found


def _keep(
    network: FxNetwork,
    reweighter: Reweighter,
    curves: Mapping[str, Selection],
    orders: Mapping[str, NDArray[np.int64]],
    batches: Sequence[Tensor],
    outputs: Sequence[Any],
    labels: Tensor | None,
    options: Options,
    report: Progress,
) -> Keep:
    size = SizeModel(network, orders, intercepts=options.settings.intercept and options.reweight)
    some = max(1, options.trial_samples // options.batch)
    targets = None if labels is None else list(labels.split(options.batch))

    def trial(metric: Metric, count: int) -> Trial:
        return lambda sizes: trials(
            network,
            reweighter.patches,
            orders,
            sizes,
            batches[:count],
            metric,
            lambda done, total: report("budget", done, total),
        )

    budget = Budget(
        size=size,
        target=int(size.total / options.ratio),
        error={name: curve.error.numpy() for name, curve in curves.items()},
        accuracy=trial(agreement(outputs, targets), len(batches)),
        change=trial(output_change(outputs), some),
    )
    return allot(options.budget, budget, options.ratio)


def agreement(outputs: Sequence[Any], labels: Sequence[Tensor] | None) -> Metric:
    """Top-1 accuracy against `labels`, or agreement with the arg-max of `outputs`."""
    wanted = labels or [first_tensor(output).argmax(-1) for output in outputs]

    def metric(found: Sequence[Any]) -> float:
        hits = [
            (first_tensor(output).argmax(-1) == want).double().mean().item() * len(want)
            for output, want in zip(found, wanted, strict=False)
        ]
        return sum(hits) / sum(len(want) for want in wanted[: len(hits)])

    return metric


def output_change(outputs: Sequence[Any]) -> Metric:
    """||f'(x) - f(x)||^2 / ||f(x) - mean f||^2 over all outputs."""
    reference = [_flat(output) for output in outputs]

    def metric(found: Sequence[Any]) -> float:
        used = reference[: len(found)]
        mean = torch.cat(used).mean(0)
        change = sum(float((_flat(f) - r).square().sum()) for f, r in zip(found, used, strict=True))
        spread = sum(float((r - mean).square().sum()) for r in used)
        return change / max(spread, 1e-30)

    return metric


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a network's output."""
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def _flat(output: Any) -> Tensor:
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.cat([tensor.double().flatten(1) for tensor in tensors], dim=1)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
