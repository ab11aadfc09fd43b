"""One run of one system: prune, fine-tune or not, measure."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Images, draw, load_images, normalise
from jobs import Job, Row
from methods import METHODS, SPARED, VERIFICATION, Method
from models import BENCHMARKS, load_network
from rivals import RIVALS
from torch import Tensor, nn
from tuning import tune

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.passes.dependencies import analyse, restrict
from subprune_fx.passes.size import parameters

EVALUATION_BATCH = 500
ONCE = ("dependencies", "calibrate", "select")
"""Stages that all ratios share."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A pruned network before it is measured; the fields are `Row`'s."""

    run: Callable[[Tensor], Tensor]
    module: nn.Module | None
    achieved: float
    speedup: float
    seconds: float


class Bench:
    """Networks, images and original accuracies, each loaded when first asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.images: dict[str, Images] = {}
        self.originals: dict[str, float] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Jobs that differ in ratio and tuning only; each ratio is pruned once."""
        first = jobs[0]
        kind = BENCHMARKS[first.net].images
        network, images = load_network(first.net, self.folder), self._load(kind)
        if first.net not in self.originals:
            self.originals[first.net] = top1(network, images, kind)
        original = self.originals[first.net]
        chosen = draw(len(images.train), first.samples, first.seed)
        ratios = sorted({job.ratio for job in jobs})
        made = self._made(network, images, first, ratios)
        for ratio in ratios:
            found = next(made, None)
            for job in (job for job in jobs if job.ratio == ratio):
                nan = float("nan")
                if found is None or (job.tuning != "none" and found.module is None):
                    yield Row(job, original, nan, nan, nan, nan)
                    continue
                run = found.run
                if job.tuning != "none":
                    assert found.module is not None
                    part = slice(None) if job.tuning == "full" else chosen
                    labels = torch.from_numpy(images.train_labels[part])
                    run = tune(found.module, images.train[part], labels, kind, job.seed)
                accuracy = top1(run, images, kind)
                yield Row(job, original, accuracy, found.achieved, found.speedup, found.seconds)

    def _load(self, kind: str) -> Images:
        if kind not in self.images:
            self.images[kind] = load_images(kind, self.folder)
        return self.images[kind]

    def _made(self, network: nn.Module, images: Images, job: Job, ratios: Sequence[float]) -> Iterator[Made]:
        """One pruned network per ratio, in order; ends at the first ratio that is out of reach."""
        kind, method = BENCHMARKS[job.net].images, METHODS[job.method]
        chosen = draw(len(images.train), job.samples, job.seed)
        calibration = normalise(images.train[chosen], kind)
        if method.rival:
            for ratio in ratios:
                start = time.perf_counter()
                try:
                    pruned = RIVALS[job.method](network, calibration, ratio)
                except RuntimeError:  # it made a network whose layers do not fit each other
                    return
                seconds = time.perf_counter() - start
                if pruned.ratio >= ratio:
                    yield Made(pruned.run, pruned.module, pruned.ratio, pruned.speedup, seconds)
            return
        options = keywords(method, job, images, kind)
        results = subprune_fx.prune_each(
            network, calibration, ratios=ratios, reweight=job.reweight, seed=job.seed, **options
        )
        shared = 0.0
        while True:
            start = time.perf_counter()
            try:
                pruned_ = next(results, None)
            except SubpruneError as error:
                if "cannot be reached" in str(error):
                    return
                raise
            if pruned_ is None:
                return
            report, stages = pruned_.report, dict(pruned_.report.seconds)
            seconds = time.perf_counter() - start + shared
            shared = shared or sum(stages[name] for name in ONCE) + stages.get("budget", 0.0)
            yield Made(pruned_.module, pruned_.module, report.achieved, report.speedup, seconds)


def keywords(method: Method, job: Job, images: Images, kind: str) -> dict[str, Any]:
    """What `prune_each` is told for a job."""
    options = dict(method.options)
    chosen = draw(len(images.train), job.samples, job.seed)
    if method.paper:
        options["labels"] = images.train_labels[chosen]
        count = min(VERIFICATION[job.net], len(images.train))
        other = draw(len(images.train), count, job.seed + 1000)
        options["verification"] = (normalise(images.train[other], kind), images.train_labels[other])
    if method.spared:
        options["skip"] = () if job.layers else SPARED[job.net]
    if method.training:
        options["training"] = (normalise(images.train, kind), images.train_labels)
    if job.budget is not None:
        options["budget"] = job.budget
    return {**options, "only": job.layers}


def ratios_at(
    network: nn.Module,
    layers: Sequence[str],
    fractions: Sequence[float] = (0.75, 0.5, 0.25, 0.1, 0.075, 0.05, 0.01),
    shape: tuple[int, ...] = (2, 3, 32, 32),
) -> tuple[float, ...]:
    """The network's ratios when only `layers` are pruned, each to the same fraction of its channels."""
    found = restrict(analyse(network, torch.zeros(shape)), layers, ())
    orders = {group.name: np.arange(len(group.units)) for group in found.channels.groups}
    size = parameters(found, orders, torch.zeros(shape), intercepts=False)
    keeps = [{name: max(1, int(fraction * n)) for name, n in size.units.items()} for fraction in fractions]
    return tuple(math.floor(1e4 * size.total / size.of(keep)) / 1e4 for keep in keeps)


def top1(network: Callable[[Tensor], Tensor], images: Images, kind: str) -> float:
    """Top-1 accuracy on the whole test set, %."""
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(images.test), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            guesses = network(normalise(images.test[part], kind)).argmax(1).numpy()
            hits += int((guesses == images.test_labels[part]).sum())
    return 100 * hits / len(images.test)
