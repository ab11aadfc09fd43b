"""What a run is, what it gave, and the journal that makes a campaign resumable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Job:
    """One run; two equal ones are not run twice.

    Attributes:
        net: A key of `models.BENCHMARKS`.
        method: A key of `methods.METHODS`.
        ratio: Requested parameter ratio.
        seed: Of the calibration inputs, and of everything random.
        reweight: Whether weights are refitted.
        tuning: One of `tuning.TUNINGS`.
        budget: Budget rule instead of the method's; None: the method's.
        layers: The only layers to prune; empty: those that the method prunes.
        samples: Calibration inputs.
    """

    net: str
    method: str
    ratio: float
    seed: int
    reweight: bool = True
    tuning: str = "none"
    budget: str | None = None
    layers: tuple[str, ...] = ()
    samples: int = 512


@dataclasses.dataclass(frozen=True)
class Row:
    """What one run gave. NaN where the ratio is out of reach.

    Attributes:
        job: Which run.
        original: Top-1 accuracy of the original network on the test set, %.
        accuracy: The same of the pruned one, %.
        achieved: Parameters before / after.
        speedup: Multiply-adds before / after.
        seconds: Pruning time of this ratio alone.
    """

    job: Job
    original: float
    accuracy: float
    achieved: float
    speedup: float
    seconds: float


def read(path: Path) -> list[Row]:
    """Finished runs; a line cut off by an interruption is dropped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        job = {**fields["job"], "layers": tuple(fields["job"]["layers"])}
        found.append(Row(**{**fields, "job": Job(**job)}))
    return found


def line_of(row: Row) -> str:
    """A finished run as `read` takes it."""
    return json.dumps(dataclasses.asdict(row)) + "\n"
