"""Targets that are measured, not counted: bytes of the written file, and latency in onnxruntime.

What a file weighs or takes depends on shapes alone, so a network cut to a budget is written and measured without being
fitted: only the one that meets the ratio is swept. The ratio is shared out among the layers by what counts in its
place: parameters for bytes, multiply-adds for latency.

Kernels work on blocks of channels: at a third of the multiply-adds ResNet56 is 1.08 times as fast with any widths and
1.5 times with multiples of 8. Where the user does not say, several alignments are tried.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.passes import search
from subprune_fx.passes.budgets import unreachable
from subprune_fx.passes.compiled import Compiled
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.search import bracket
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.passes.writers import Job, bytes_of, writer_of
from subprune_fx.report import Step


class File(NamedTuple):
    """Where a network is written, and how many bytes it takes."""

    path: Path
    size: int


Compare = Callable[[File, File, Inputs, int], float]
"""From the original's file, another's, an input and threads to how many times larger the original is."""
FINE = 1.1
"""Latencies of ratios closer than this are not told apart, see `passes.search`."""
PATIENCE = 1.0
"""Seconds that a file is timed: what is decided by it has to hold when it is timed again."""


@dataclasses.dataclass(frozen=True)
class Gauge:
    """A target that is measured.

    Attributes:
        suffix: Of the file that it is measured on; None for that of the first output.
        compare: Measures.
        alignments: Of widths, in the order in which they are tried; None: see `passes.steps.multiples`.
        fine: See `bracket`.
    """

    suffix: str | None
    compare: Compare
    alignments: tuple[int | None, ...] = (None,)
    fine: float = search.FINE


def _bytes(before: File, after: File, example: Inputs, threads: int) -> float:
    del example, threads
    return before.size / after.size


def _latency(before: File, after: File, example: Inputs, threads: int) -> float:
    slow, fast = latencies_ms([before.path, after.path], example, threads=threads, seconds=PATIENCE)
    return slow / fast


GAUGES: Mapping[str, Gauge] = MappingProxyType(
    {"size": Gauge(None, _bytes), "latency": Gauge(".onnx", _latency, alignments=(8, 4, 1), fine=FINE)}
)


class _Found(NamedTuple):
    """The ratio of what counts in the target's place, the compiler for it, and the measurements."""

    proxy: float
    compiler: Compiler
    tried: tuple[Step, ...]


def reached(compiler: Compiler, original: nn.Module, example: Inputs, ratio: float) -> Compiled:
    """The largest network found whose measured size or latency is at most 1 / `ratio` of the original's.

    Args:
        compiler: Calibrated; its options name the target.
        original: The network before, as users run it.
        example: One input.
        ratio: Above 1.

    Raises:
        SubpruneError: The ratio is out of reach, or the network cannot be written.
    """
    options, team = compiler.options, compiler.team
    gauge = GAUGES[options.target]
    suffix = gauge.suffix or options.file
    with tempfile.TemporaryDirectory(prefix="subprune-") as folder:
        paths = [Path(folder) / f"{name}{suffix}" for name in ("before", "after")]
        before = _written(paths[0], original, example, options.target) if team.rank == 0 else None

        def measure(candidate: Compiler, proxy: float) -> float:
            module, found = spread(candidate.shape(proxy)), math.nan
            if before is not None:  # one machine's measurement decides for all
                after = _written(paths[1], module, example, options.target)
                found = gauge.compare(before, after, example, options.threads)
            return team.agreed(found)

        best: _Found | None = None
        largest = 1.0
        for align in gauge.alignments if options.align is None else (options.align,):
            candidate = compiler.aligned(align)
            most = candidate.most if best is None else min(candidate.most, best.proxy)
            start = ratio if best is None else most  # another is worth a search if it is as fast with as much left
            below = math.nextafter(ratio, 0)  # reaching the ratio is enough
            found = bracket(partial(measure, candidate), below, origin=1.0, start=start, most=most, fine=gauge.fine)
            largest = max(largest, *(step.value for step in found.tried))
            if found.above is not None:
                best = _Found(found.above.ratio, candidate, found.tried)
    if best is None:
        raise unreachable(f"{options.target} ratio", ratio, largest)
    return dataclasses.replace(best.compiler.compile(best.proxy), ratio=ratio, searched=best.tried)


def _written(path: Path, module: nn.Module, example: Inputs, target: str) -> File:
    """Write a file that is only measured.

    Raises:
        SubpruneError: It cannot be written; said of the target, as nobody has asked for the file.
    """
    try:
        writer_of(path, module).write(Job(module, example), path)
    except SubpruneError as error:
        what = error.what.replace(str(path), f"the {path.suffix} file that is measured")
        raise type(error)(what, where=f"target {target}", remedy=error.remedy) from error
    return File(path, bytes_of(path, module))
