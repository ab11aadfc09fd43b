"""What a compilation did, as a frozen value that prints and serialises."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """One pruned group of coupled channels.

    Attributes:
        name: The group's first producer, e.g. `layer1.0.conv1`.
        channels: Units (channels, heads, neurons) before.
        kept: Units after.
        error: Relative input change of the group's consumers at `kept` units, 0 to 1 (paper eq. 1, normalised).
        consumers: Names of the layers that read the group.
    """

    name: str
    channels: int
    kept: int
    error: float
    consumers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FrozenRow:
    """Channels that cannot be pruned, and why.

    Attributes:
        name: The producer whose channels they are.
        channels: How many.
        reason: One sentence for the user.
    """

    name: str
    channels: int
    reason: str


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
        latency_ms: Median onnxruntime latency of one sample, milliseconds; None where the format has none.
        latency_before_ms: The same for the original network.
        max_difference: Largest absolute output difference to the torch network over the calibration inputs.
    """

    path: str
    bytes: int
    bytes_before: int | None = None
    latency_ms: float | None = None
    latency_before_ms: float | None = None
    max_difference: float | None = None


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
