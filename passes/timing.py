"""How long onnxruntime takes, file against file."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence

from subprune_fx.bundle import Inputs
from subprune_fx.passes.validate import onnx_runner

WARM_UP = 3
LONG = 0.5
"""Seconds of a call that is no surprise to the processor the second time, and during which interruptions even out."""
STRETCH = 5e-4
"""Seconds that calls are timed together: a single one of a small network is no longer than the clock's own noise."""
ROUNDS, ROUNDS_OF_LONG = 8, 3
"""How often calls are timed at least: as often as three times long ones, or as many as take as much time."""
MOST_ROUNDS = 2000


def latencies_ms(
    paths: Sequence[str | os.PathLike[str]], example: Inputs, *, threads: int = 1, seconds: float = 0.4
) -> list[float]:
    """Time of a call of each file, timed in turns in random order, so that what else the machine does hits all alike.

    The lowest decile of what is measured: what is slower was mostly interrupted.

    Args:
        paths: ONNX files.
        example: An input.
        threads: Of onnxruntime; 0 for all cores. Small networks gain nothing from more than one, and the wait for the
            others is what varies.
        seconds: Roughly how long to measure each.

    Returns:
        Milliseconds a call, file by file.
    """
    runs = [onnx_runner(path, threads=threads) for path in paths]
    once = [_warm(lambda run=run: run(example)) for run in runs]  # type: ignore[misc]
    calls = [max(1, round(STRETCH / seconds_each)) for seconds_each in once]
    fewest = max(ROUNDS_OF_LONG, min(ROUNDS, math.ceil(ROUNDS_OF_LONG * LONG / min(once))))
    times: list[list[float]] = [[] for _ in runs]
    order = random.Random(0)  # noqa: S311 - to keep out of step with other programs, not to hide from them
    deadline = time.perf_counter() + seconds * len(runs)
    while len(times[0]) < fewest or (time.perf_counter() < deadline and len(times[0]) < MOST_ROUNDS):
        for place in order.sample(range(len(runs)), len(runs)):
            run, count = runs[place], calls[place]
            start = time.perf_counter()
            for _ in range(count):
                run(example)
            times[place].append((time.perf_counter() - start) / count)
    return [1e3 * statistics.quantiles(found, n=10, method="inclusive")[0] for found in times]


def _warm(call: Callable[[], object]) -> float:
    """Seconds that a call takes once it has been made a few times."""
    for _ in range(WARM_UP):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if seconds > LONG:
            break
    return max(seconds, 1e-9)
