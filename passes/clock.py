"""Stages: how far one has come, how long each has taken, and what is to be done between them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from subprune_fx.heap import trim

Tick = Callable[[int, int], None]
"""Told (steps done, steps)."""

Progress = Callable[[str, int, int], None]
"""Told (stage, steps done, steps)."""


class Clock:
    """Times stages, and clears up behind each: graphs are cycles, which hold copies of a network until collected."""

    def __init__(self, *, large: bool) -> None:
        """Set up; `large` says whether copies of the network are worth a run of the collector."""
        self.seconds: dict[str, float] = {}
        self._large = large

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage's time."""
        start = time.perf_counter()
        yield
        if self._large:
            gc.collect()
        trim()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
