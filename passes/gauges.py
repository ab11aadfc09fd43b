"""Targets that are measured, not counted: bytes of the written file, and latency in onnxruntime.

What a file weighs or takes depends on shapes alone, so a network cut to a budget is written and measured without being
fitted: only the one that meets the ratio is swept. The ratio is shared out among the layers by what counts in its
place: parameters for bytes, multiply-adds for latency.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.write import Job, writer_of
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.passes.pipeline import Compiled, Compiler
from subprune_fx.passes.search import bracket
from subprune_fx.passes.timing import latencies_ms

Compare = Callable[[Path, Path, Inputs, int], float]
"""From the original's file, another's, an input and threads to how many times larger the original is."""
PATIENCE = 1.0
"""Seconds that a file is timed: what is decided by it has to hold when it is timed again."""


@dataclasses.dataclass(frozen=True)
class Gauge:
    """A target that is measured.

    Attributes:
        suffix: Of the file that it is measured on; None for that of the first output.
        compare: Measures.
    """

    suffix: str | None
    compare: Compare


def _bytes(before: Path, after: Path, example: Inputs, threads: int) -> float:
    del example, threads
    return before.stat().st_size / after.stat().st_size


def _latency(before: Path, after: Path, example: Inputs, threads: int) -> float:
    slow, fast = latencies_ms([before, after], example, threads=threads, seconds=PATIENCE)
    return slow / fast


GAUGES: Mapping[str, Gauge] = MappingProxyType({"size": Gauge(None, _bytes), "latency": Gauge(".onnx", _latency)})


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
        before, after = Path(folder) / f"before{suffix}", Path(folder) / f"after{suffix}"
        if team.rank == 0:
            writer_of(before, original).write(Job(original, example), before)

        def measure(proxy: float) -> float:
            if team.rank > 0:  # one machine's measurement decides for all
                return team.agreed(math.nan)
            module = spread(compiler.shape(proxy))
            writer_of(after, module).write(Job(module, example), after)
            return team.agreed(gauge.compare(before, after, example, options.threads))

        below = math.nextafter(ratio, 0)  # reaching the ratio is enough
        found = bracket(measure, below, origin=1.0, start=ratio, most=compiler.most)
    if found.above is None:
        largest = math.floor(max(step.value for step in found.tried) * 100) / 100
        what = f"{options.target} ratio {ratio:g} cannot be reached: with as few channels as possible it is {largest:g}"
        raise SubpruneError(what, remedy=f"ask for at most {largest:g}")
    return dataclasses.replace(compiler.compile(found.above.ratio), ratio=ratio, searched=found.tried)
