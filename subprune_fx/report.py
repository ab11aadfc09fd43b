"""What a compilation did, as a frozen value that prints and serialises."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """One pruned group of coupled channels.

    Attributes:
        name: The group's first producer, e.g. `layer1.0.conv1`.
        channels: Units (channels, heads, neurons) before.
        kept: Units after.
        error: How much the inputs of the layers that read the group change with `kept` units, relative, 0 to 1 (paper
            eq. 1, normalised; what several layers lose is added up, and is relative to its largest where that is more
            than 1); NaN where the selector measures none.
        consumers: Names of the layers that read the group.
        producers: Names of the layers that make it.
        followers: Layers and parameters that are cut along.
        curve: Some numbers of units, ascending, and the error with so many kept; empty where it is not known.
    """

    name: str
    channels: int
    kept: int
    error: float
    consumers: tuple[str, ...]
    producers: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class FrozenRow:
    """Channels that cannot be pruned, and why.

    Attributes:
        name: The producer whose channels they are.
        channels: How many; 0: the layer stays whole, whatever it reads (it is quantised, say).
        reason: One sentence for the user.
    """

    name: str
    channels: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.channels}, {self.reason}" if self.channels else f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """The size of a network.

    Attributes:
        parameters: Elements of all parameters (buffers not counted).
        flops: Multiply-adds of all contractions for one sample.
    """

    parameters: int
    flops: int


@dataclasses.dataclass(frozen=True)
class FileRow:
    """One written file.

    Attributes:
        path: Where it was written.
        bytes: Its size.
        bytes_before: Size of the original network in the same format; None where it was not made.
        latency_ms: Onnxruntime latency of one sample (`passes.timing`), milliseconds; None where the format has none.
        latency_before_ms: The same for the original network.
        max_difference: Largest absolute output difference to the torch network over the calibration inputs.
        batch: The only batch size that it takes, where torch.export could not leave it open; None elsewhere.
    """

    path: str
    bytes: int
    bytes_before: int | None = None
    latency_ms: float | None = None
    latency_before_ms: float | None = None
    max_difference: float | None = None
    batch: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One network that was measured on the way to a goal (`--max-drop`, or a measured target).

    Attributes:
        ratio: Its ratio.
        value: What was measured: the drop in percentage points, or how many times smaller or faster it is.
    """

    ratio: float
    value: float


@dataclasses.dataclass(frozen=True)
class Stage:
    """A file of the network on the way from the original to the quantised one, as onnxruntime runs it.

    Attributes:
        name: `original`, `pruned`, `int8`.
        bytes: Its size.
        latency_ms: Time of one sample (`passes.timing`), milliseconds; all stages are timed in turns.
        agreement: Fraction of calibration inputs with the same arg-max as the original; None where the output is not a
            class score.
        accuracy: Top-1 accuracy on the evaluation set, 0 to 1; None without one.
        path: Where it was written; None for the original.
        change: As `Report`, of this stage.
    """

    name: str
    bytes: int
    latency_ms: float
    agreement: float | None
    accuracy: float | None
    path: str | None = None
    change: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole result of one compilation.

    Attributes:
        ratio: Requested ratio, of what `settings` names as the target.
        before: Cost of the original network.
        after: Cost of the pruned network.
        groups: Pruned groups in the order of the graph.
        frozen: Channels left alone, with reasons.
        agreement: Fraction of calibration inputs with the same arg-max as the original; None where the output
            is not a class score.
        accuracy_before: Top-1 accuracy of the original on the evaluation set, 0 to 1; None without one.
        accuracy_after: The same for the pruned network.
        settings: The options that produced it.
        seconds: Wall time by stage.
        notes: Warnings worth a line each.
        files: What was written.
        stages: Original, pruned and quantised network, where it was quantised.
        searched: What was measured to find the ratio, where it was not given.
        change: Where the output is not a class score: how far it is from the original's, root mean square relative to
            how much the original's varies over the calibration inputs; None where it is one.
        drop: With `max_drop`, what the network loses on inputs that it was not fitted on, in percentage points.
        distilled: Steps of distillation after which the network came closest to the original on inputs that were not
            trained on, and whose weights it has; 0: after none. None where it was not asked for.
    """

    ratio: float
    before: Cost
    after: Cost
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    agreement: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    settings: tuple[tuple[str, str], ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[FileRow, ...] = ()
    stages: tuple[Stage, ...] = ()
    searched: tuple[Step, ...] = ()
    change: float | None = None
    drop: float | None = None
    distilled: int | None = None

    @property
    def achieved(self) -> float:
        """Parameters before over parameters after."""
        return self.before.parameters / max(self.after.parameters, 1)

    @property
    def speedup(self) -> float:
        """Multiply-adds before over multiply-adds after."""
        return self.before.flops / max(self.after.flops, 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        return {**dataclasses.asdict(self), "achieved": self.achieved}


@dataclasses.dataclass(frozen=True)
class Point:
    """One network of several made from the same calibration: what it costs and what it is worth.

    Attributes:
        ratio: As asked for.
        parameters: As `Cost`.
        flops: As `Cost`.
        bytes: Of the first file written.
        latency_ms: Of the first file that has one.
        agreement: As `Report`.
        accuracy: As `Report.accuracy_after`.
        change: As `Report`.
    """

    ratio: float
    parameters: int
    flops: int
    bytes: int | None
    latency_ms: float | None
    agreement: float | None
    accuracy: float | None
    change: float | None = None


def curve(reports: Sequence[Report]) -> tuple[Point, ...]:
    """A point for each report, in their order."""
    points = []
    for report in reports:
        latency = next((row.latency_ms for row in report.files if row.latency_ms is not None), None)
        size = report.files[0].bytes if report.files else None
        after = report.after
        worth = report.agreement, report.accuracy_after, report.change
        points.append(Point(report.ratio, after.parameters, after.flops, size, latency, *worth))
    return tuple(points)
