"""The paper's figures 1 to 5 from finished runs: accuracy over ratio, one panel a network and reweighting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import Row
from methods import METHODS
from models import BENCHMARKS

TWO = ("0", "22")
"""VGG11's first and second to last convolution: figures 4 and 5."""

FIGURES = {"none": "figure1", "batches": "figure2", "full": "figure3"}
"""By tuning."""


def draw_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what there are runs for; needs matplotlib.

    Returns:
        The files written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    written = []
    for tuning, name in FIGURES.items():
        mine = [row for row in rows if row.job.tuning == tuning and not row.job.layers and not row.job.budget]
        nets = [net for net in BENCHMARKS if any(row.job.net == net for row in mine)]
        panels = [
            [(f"{net}, {words}", [r for r in mine if r.job.net == net and r.job.reweight == reweight]) for net in nets]
            for reweight, words in ((True, "reweighted"), (False, "not reweighted"))
        ]
        written += _draw(panels, folder / f"{name}.png", "compression ratio")
    for name, budget in (("figure4", "accuracy"), ("figure5", "uniform")):
        mine = [row for row in rows if row.job.layers == TWO and row.job.budget == budget]
        panels = [
            [
                (f"{tuning}, {words}", [r for r in mine if r.job.tuning == tuning and r.job.reweight == reweight])
                for reweight, words in ((True, "reweighted"), (False, "not reweighted"))
            ]
            for tuning in FIGURES
        ]
        written += _draw(panels, folder / f"{name}.png", "compression ratio of the network")
    return written


def _draw(panels: Sequence[Sequence[tuple[str, list[Row]]]], path: Path, label: str) -> list[Path]:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    lines = [line for line in panels if any(rows for _, rows in line)]
    if not lines:
        return []
    figure, axes = plt.subplots(
        len(lines), len(lines[0]), figsize=(5.2 * len(lines[0]), 3.8 * len(lines)), squeeze=False
    )
    for line, row_of_axes in zip(lines, axes, strict=True):
        for (title, rows), axis in zip(line, row_of_axes, strict=True):
            _panel(axis, title, rows, label)
    handles = {text: line for axis in axes.flat for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]


def _panel(axis: Any, title: str, rows: Sequence[Row], label: str) -> None:
    styles = [(f"C{i % 10}", "os^v"[i // 10]) for i in range(len(METHODS))]
    for (method, about), (colour, marker) in zip(METHODS.items(), styles, strict=True):
        points = []
        for ratio in sorted({row.job.ratio for row in rows}):
            values = [r.accuracy for r in rows if r.job.method == method and r.job.ratio == ratio]
            if values and not any(map(math.isnan, values)):
                points.append((ratio, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0))
        if points:
            x, y, error = zip(*points, strict=True)
            axis.errorbar(x, y, error, color=colour, marker=marker, ms=4, lw=1, capsize=2, label=about.title)
    axis.set(title=title, xlabel=label, ylabel="top-1 %", xscale="log")
    axis.set_xscale("log", base=2)
    axis.grid(visible=True, alpha=0.3)
