"""All passes in order: from a module and calibration inputs to a plan and its error, ready to rewrite."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from subprune_fx.numerics.greedy import Selection, greedy
from subprune_fx.passes.budget import DEFAULT_BUDGET, Budget, Trial, allot
from subprune_fx.passes.calibrate import Tick, calibrate
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.problems import Settings, blocks
from subprune_fx.passes.size import SizeModel
from subprune_fx.passes.sweep import Sweep
from subprune_fx.passes.trials import Metric, Reweighter, trials
from subprune_fx.plan import Plan

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chooses, whatever the ratio.

    Attributes:
        variant: `asym`, `seq` or `layer`.
        budget: A rule of `passes.budget.BUDGETS`.
        reweight: False leaves consumers' weights as they are.
        settings: How least squares are posed.
        stochastic: Epsilon of stochastic greedy (paper App. B.3); None for exact greedy.
        seed: Of everything random.
        trial_samples: Most inputs used to measure one group pruned alone.
        batch: Samples a forward pass.
    """

    variant: str = "asym"
    budget: str = DEFAULT_BUDGET
    reweight: bool = True
    settings: Settings = dataclasses.field(default_factory=Settings)
    stochastic: float | None = None
    seed: int = 0
    trial_samples: int = 256
    batch: int = 128


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the passes found for one ratio.

    Attributes:
        ratio: Parameters before over parameters after, at least.
        plan: What to do to the network.
        outputs: The pruned network's outputs on the calibration inputs, by batch.
        seconds: Wall time by stage, from the start of the calibration.
    """

    ratio: float
    plan: Plan
    outputs: list[Any]
    seconds: dict[str, float]


class Compiler:
    """The passes in order. What does not depend on the ratio is done once, however many ratios are asked for.

    Attributes:
        network: The analysed network.
        options: The user's choices.
        outputs: The original network's outputs on the calibration inputs, by batch.
    """

    def __init__(
        self,
        module: nn.Module,
        calibration: Tensor,
        options: Options,
        labels: Tensor | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Analyse, calibrate and select.

        Args:
            module: The network, unchanged.
            calibration: Inputs, (samples, ...).
            options: The user's choices.
            labels: Class of each calibration input, for the accuracy budget; None compares with the original
                network's own predictions.
            progress: Told (stage, done, total).

        Raises:
            SubpruneError: If the network cannot be traced or has nothing to prune.
        """
        self.options = options
        self._report = progress or (lambda _stage, _done, _total: None)
        self._clock = _Clock()
        self._batches = batches_of(calibration, options.batch)
        self._labels = None if labels is None else batches_of(labels, options.batch)
        with self._clock("dependencies"):
            self.network = analyse(module, calibration[:2])
        with self._clock("calibrate"):
            moments, self.outputs = calibrate(self.network, self._batches, self._tick("calibrate"))
        with self._clock("select"):
            self._reweighter = Reweighter(self.network, moments, options.settings, reweight=options.reweight)
            self._curves = self._select()
        self._orders = {name: curve.order.numpy() for name, curve in self._curves.items()}
        self._budget = self._measures()

    def compile(self, ratio: float) -> Compiled:
        """The plan for one ratio.

        Raises:
            SubpruneError: If the ratio is out of reach.
        """
        with self._clock("budget"):
            keep = allot(self.options.budget, self._budget, ratio)
        with self._clock("sweep"):
            sweep = Sweep(
                self.network,
                keep,
                self._orders,
                variant=self.options.variant,
                settings=self.options.settings,
                reweight=self.options.reweight,
            )
            plan, outputs = sweep.run(self._batches, self._tick("sweep"))
        return Compiled(ratio, plan, outputs, dict(self._clock.seconds))

    def _tick(self, stage: str) -> Tick:
        return lambda done, total: self._report(stage, done, total)

    def _select(self) -> dict[str, Selection]:
        """Nested order and error curve of every group by the original network's moments."""
        generator = torch.Generator().manual_seed(self.options.seed)
        channels, problems = self.network.channels, self._reweighter.problems
        found = {}
        for done, group in enumerate(channels.groups, 1):
            parts = [block for name in group.consumers for block in blocks(group, problems[name], channels)]
            found[group.name] = greedy(parts, len(group.units), epsilon=self.options.stochastic, generator=generator)
            self._report("select", done, len(channels.groups))
        return found

    def _measures(self) -> Budget:
        """What budget rules may ask: sizes, error curves, and trials of one group at a time."""
        intercepts = self.options.settings.intercept and self.options.reweight
        some = max(1, self.options.trial_samples // self.options.batch)

        def trial(metric: Metric, count: int) -> Trial:
            return functools.cache(
                lambda sizes: trials(
                    self.network,
                    self._reweighter.patches,
                    self._orders,
                    dict(sizes),
                    self._batches[:count],
                    metric,
                    self._tick("budget"),
                )
            )

        return Budget(
            size=SizeModel(self.network, self._orders, intercepts=intercepts),
            error={name: curve.error.numpy() for name, curve in self._curves.items()},
            accuracy=trial(agreement(self.outputs, self._labels), len(self._batches)),
            change=trial(output_change(self.outputs), some),
        )


def batches_of(tensor: Tensor, size: int) -> list[Tensor]:
    """`tensor` in pieces of `size` samples."""
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


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
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
