"""Results as CSV and Markdown: accuracy, speed-up, pruning time, beside the paper's, and the order of the methods."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from jobs import Row
from methods import METHODS, Published, published
from models import BENCHMARKS

Key = TypeVar("Key", bound=Hashable)

TICK = {True: "✓", False: ""}


def save(rows: Sequence[Row], folder: Path) -> None:
    """Write paper.csv (a line a run) and paper.md (a table a network)."""
    (folder / "paper.md").write_text(markdown(rows), encoding="utf-8")
    flat = [{**dataclasses.asdict(row.job), **dataclasses.asdict(row)} for row in rows]
    with (folder / "paper.csv").open("w", newline="", encoding="utf-8") as file:
        names = [name for name in flat[0] if name != "job"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)


def markdown(rows: Sequence[Row]) -> str:
    """A table a network: the paper's 3 to 5, each figure as here / in the paper."""
    return "\n".join(
        _table(name, mine) for name in BENCHMARKS if (mine := [row for row in rows if row.job.net == name])
    )


def _table(name: str, rows: Sequence[Row]) -> str:
    ratios = sorted({row.job.ratio for row in rows})
    seeds = len({row.job.seed for row in rows})
    about = (
        f"Original: {rows[0].original:.2f} % here, {BENCHMARKS[name].paper_original:.2f} % in the paper. "
        f"Top-1 %, mean ± deviation over {seeds} seed{'s' if seeds > 1 else ''} (the paper's); "
        "x: speed-up in FLOPs; s: pruning time."
    )
    lines = [
        f"### {name}",
        "",
        about,
        "",
        f"| method | rw | ft | {' | '.join(f'c = {ratio:g}' for ratio in ratios)} |",
        f"|---|---|---|{'---|' * len(ratios)}",
    ]
    for key, group in _grouped(rows, lambda row: (row.job.method, row.job.reweight, row.job.tuning, row.job.budget)):
        method, reweight, tuning, budget = key
        title = METHODS[method].title + (f", {budget}" if budget else "")
        cells = [_cell([row for row in group if row.job.ratio == ratio]) for ratio in ratios]
        tuned = "" if tuning == "none" else tuning
        lines.append(f"| {title} | {TICK[reweight]} | {tuned} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _order(name, rows), ""])


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    if any(math.isnan(row.accuracy) for row in rows):
        return "out of reach"
    said = said_of(rows[0])
    beside = "" if said is None else f" ({said.accuracy:.1f})"
    speed = statistics.mean(row.speedup for row in rows)
    fast = "" if math.isnan(speed) else f", {speed:.1f}x" + ("" if said is None else f" ({said.speedup:.1f})")
    time = statistics.median(row.seconds for row in rows)
    return f"{spread([row.accuracy for row in rows])}{beside}{fast}, {time:.0f} s"


def said_of(row: Row) -> Published | None:
    """The paper's figures for a run."""
    job = row.job
    if job.layers or job.budget or job.tuning == "batches" or job.ratio != int(job.ratio):
        return None
    return published().get((job.net, job.method, job.reweight, job.tuning == "full", int(job.ratio)))


def spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`; a single value has none."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def _order(name: str, rows: Sequence[Row]) -> str:
    """Methods from best to worst, here and in the paper: mean accuracy over the ratios, reweighted, not tuned."""
    mine = [row for row in rows if row.job.tuning == "none" and row.job.reweight and not row.job.budget]
    here = {
        method: statistics.mean(row.accuracy for row in group)
        for method, group in _grouped(mine, lambda row: row.job.method)
        if not any(math.isnan(row.accuracy) for row in group)
    }
    ratios = {row.job.ratio for row in mine}
    there = {}
    for method in here:
        said = [published().get((name, method, True, False, int(ratio))) for ratio in ratios]
        if said and all(said):
            there[method] = statistics.mean(item.accuracy for item in said if item is not None)

    def listed(scores: dict[str, float]) -> str:
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        return ", ".join(f"{METHODS[method].title} {score:.1f}" for method, score in ranked)

    return f"Order by mean over the ratios, reweighted: {listed(here)}.\n\nIn the paper: {listed(there)}."


def _grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> list[tuple[Key, list[Row]]]:
    """Rows with equal keys, in the order of their first row."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())
