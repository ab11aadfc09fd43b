"""A report as one HTML file: no scripts, nothing from elsewhere, readable on a phone and in the dark."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from subprune_fx.explanation import Coupled, Explanation
from subprune_fx.formats import figures
from subprune_fx.formats.charts import SPARK, Chart, chart, spark, spark_height
from subprune_fx.formats.drawing import svg
from subprune_fx.formats.facts import facts
from subprune_fx.report import GroupRow, Report, curve

TEMPLATE = "report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One pruned group: its row, and its error curve as a polyline with the place of what is kept."""

    row: GroupRow
    line: str
    at: tuple[float, float]

    @property
    def share(self) -> float:
        """Channels kept of all."""
        return self.row.kept / self.row.channels


def page(reports: Sequence[Report], network: str) -> str:
    """The whole page.

    Args:
        reports: Of one network, or of several made from one calibration.
        network: What the network is called.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value: f"{value:.4f}"
    template = environment.from_string(resources.files("subprune_fx.formats").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        network=network,
        version=_version(),
        reports=[_section(report) for report in reports],
        charts=charts(reports),
        picture=svg(explanation(reports[0], network)),
        frozen=[(row.name, row.channels, row.reason) for row in reports[0].frozen],
        notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
        spark=SPARK,
    )


def explanation(report: Report, network: str) -> Explanation:
    """The dependency graph that a report is about."""
    groups = (Coupled(row.name, row.channels, row.producers, row.followers, row.consumers) for row in report.groups)
    return Explanation(network, tuple(groups), report.frozen)


def charts(reports: Sequence[Report]) -> list[Chart]:
    """Ratio against what several networks are worth, and the way to a ratio that was searched for."""
    points = curve(reports)
    drawn = []
    worth: dict[str, list[tuple[float, float]]] = {
        figures.AGREEMENT: [(p.ratio, p.agreement) for p in points if p.agreement is not None],
        "accuracy": [(p.ratio, p.accuracy) for p in points if p.accuracy is not None],
        figures.CHANGE: [(p.ratio, p.change) for p in points if p.change is not None],
    }
    series = {name: pairs for name, pairs in worth.items() if pairs}
    if len(points) > 1 and series:
        most = math.inf if figures.CHANGE in series else 1.0
        drawn.append(chart("What each ratio costs", "ratio", series, lambda value: f"{100 * value:.1f} %", (0, most)))
    for report in reports:
        if len(report.searched) > 1:
            steps = {"measured": [(step.ratio, step.value) for step in report.searched]}
            drawn.append(
                chart("The way to this ratio", "ratio tried", steps, lambda value: f"{value:.3g}", (0, math.inf))
            )
    return drawn


def _section(report: Report) -> dict[str, Any]:
    """What the template says about one network."""
    size = SPARK[0]
    bars = [
        Bar(row, spark(row.curve, row.channels), (size * row.kept / row.channels, spark_height(row.error)))
        for row in report.groups
    ]
    used = figures.columns(report.stages, figures.STAGES)
    stages = [(row.name, *cells) for row, *cells in zip(report.stages, *used.values(), strict=True)]
    return {
        "report": report,
        "facts": list(facts(report)),
        "bars": bars,
        "stages": stages,
        "headings": ["stage", *used],
    }


def _version() -> str:
    try:
        return importlib.metadata.version("subprune_fx")
    except importlib.metadata.PackageNotFoundError:
        return ""
