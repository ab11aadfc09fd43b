"""The figures of a report, before and after: rows of the terminal's table and of the page alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from subprune_fx.formats import figures
from subprune_fx.report import FileRow, Report


@dataclasses.dataclass(frozen=True)
class Fact:
    """One figure of the network before and after.

    Attributes:
        name: What it is.
        before: As text; may be empty.
        after: As text.
        ratio: As text; may be empty.
        share: After as a fraction of before, for a bar; None for no bar.
    """

    name: str
    before: str
    after: str
    ratio: str = ""
    share: float | None = None


def facts(report: Report) -> Iterator[Fact]:
    """In the order in which they are shown; what is not known is left out."""
    before, after = report.before, report.after
    yield _compared("parameters", before.parameters, after.parameters, figures.count)
    yield _compared("FLOPs (multiply-adds, one sample)", before.flops, after.flops, figures.count)
    for file in report.files:
        yield from _of_file(file)
    if report.distilled is not None:
        yield Fact("distillation steps kept", "", figures.count(report.distilled))
    if report.agreement is not None:
        yield Fact(figures.AGREEMENT, "", figures.percent(report.agreement))
    if report.change is not None:
        yield Fact(figures.CHANGE, "", figures.percent(report.change))
    if report.drop is not None:
        yield Fact("drop on held-out inputs", "", f"{report.drop:.2f} points")
    if report.accuracy_after is not None:
        yield Fact("accuracy", figures.percent(report.accuracy_before), figures.percent(report.accuracy_after))


def _of_file(file: FileRow) -> Iterator[Fact]:
    suffix = file.path[file.path.rfind(".") :]
    yield _compared(f"file size, {suffix}", file.bytes_before, file.bytes, figures.size)
    if file.latency_ms is not None:
        name = "latency, onnxruntime, one sample"
        yield _compared(name, file.latency_before_ms, file.latency_ms, figures.milliseconds)
    if file.max_difference is not None:
        yield Fact(f"largest difference to torch, {suffix}", "", figures.scientific(file.max_difference))


def _compared(name: str, before: Any, after: Any, text: Callable[[Any], str]) -> Fact:
    share = None if not before else min(after / before, 1.0)
    return Fact(name, text(before), text(after), figures.ratio(before, after), share)
