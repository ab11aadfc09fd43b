"""How long everything takes, beside one forward pass, the least that the method needs, and Torch-Pruning.

    python examples/benchmarks/speed.py --data FOLDER [--only "command lenet*"] [--repeat 5] [--results results]

Every measurement is a line of RESULTS/speed.jsonl; what is there already is not measured again, so a run may be
interrupted and continued, or done in slices with --only. Repeats go round: first every task once, then every task
again, so that what else the machine did in the meantime spreads over all. Tables are medians.
"""

from __future__ import annotations

import fnmatch
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from data import data_option
from speed_layers import CURVES, Values
from speed_tasks import TARGETS, tasks

HEADS = (
    *("network", "c", "s", "processor s", "MB", "forward passes", "floors", "Torch-Pruning s"),
    *("latency x", "FLOPs x", "latency / FLOPs"),
)
"""Of the table of whole commands: times also as multiples, and what onnxruntime makes of the smaller network."""

Known = dict[str, list[Values]]


def read(path: Path) -> Known:
    """Measurements by task; a line cut off by an interruption is dropped."""
    found: Known = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(fields["task"], []).append(fields["values"])
    return found


def medians(known: Known) -> dict[str, Values]:
    """By task, the median of each of its values."""
    return {task: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for task, runs in known.items()}


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Slope of log time over log x at the last three points, where constant costs matter least."""
    x, y = np.log(np.asarray(sorted(points)[-3:], dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def curves(found: Mapping[str, Values]) -> dict[str, list[tuple[int, float]]]:
    """Points (value, seconds) of every curve that has been measured."""
    points = {
        curve: [
            (value, found[f"curve {curve}={value}"]["seconds"]) for value in values if f"curve {curve}={value}" in found
        ]
        for curve, (_, values) in CURVES.items()
    }
    return {curve: line for curve, line in points.items() if line}


def commands(found: Mapping[str, Values]) -> list[str]:
    """Rows of the table of whole commands."""
    rows = []
    for name, target in TARGETS.items():
        base, rival = found.get(f"forward {name}"), found.get(f"torch-pruning {name} c=4")
        for ratio in target.ratios:
            run = found.get(f"command {name} c={ratio}")
            if run is None:
                continue
            multiples = ("", "") if base is None else (run["seconds"] / base["seconds"], run["seconds"] / base["floor"])
            other = rival["seconds"] if rival is not None and ratio == 4 else ""
            other = "its network does not run" if other != other else other  # noqa: PLR0124 - nan
            figures = [run["seconds"], run["processor"], run["MB"], *multiples, other]
            figures += [run["latency x"], run["FLOPs x"], run["latency / FLOPs"]]
            rows.append(_row(name, ratio, *figures))
    return rows


def _row(*cells: str | float) -> str:
    return "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def report(known: Known) -> str:
    """All tables, as far as there are measurements."""
    found, lines = medians(known), []
    if whole := commands(found):
        lines += [_row(*HEADS), "|" + "---|" * len(HEADS), *whole, ""]
    rest = {task: values for task, values in found.items() if not task.startswith(("command", "curve"))}
    for task in sorted(rest):
        lines.append(f"{task}: " + ", ".join(f"{key} {value:.3f}" for key, value in rest[task].items()))
    for curve, points in curves(found).items():
        fit = f", exponent {exponent(points):.2f}" if len(points) > 2 else ""
        lines.append(f"seconds by {curve}: " + ", ".join(f"{x}: {y:.2f}" for x, y in points) + fit)
    return "\n".join(lines)


def draw(known: Known, path: Path) -> None:
    """The curves; needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    lines = curves(medians(known))
    figure, axes = plt.subplots(1, len(lines), figsize=(3.4 * len(lines), 3.2), squeeze=False)
    for axis, (curve, points) in zip(axes[0], lines.items(), strict=True):
        axis.plot(*zip(*points, strict=True), marker="o")
        title = f"exponent {exponent(points):.2f}" if len(points) > 2 else ""
        axis.set(xscale="log", yscale="log", xlabel=curve, ylabel="s", title=title)
        values = [x for x, _ in points]
        axis.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command()
@data_option
@click.option("--only", multiple=True, metavar="PATTERN", help="Tasks to run, * and ? match; default: all.")
@click.option("--repeat", type=click.IntRange(min=0), default=5, show_default=True, help="0 prints what is known.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--list", "listing", is_flag=True, help="Print the tasks and stop.")
def main(data: Path | None, only: tuple[str, ...], repeat: int, results: Path, listing: bool) -> None:
    """Measure what has not been measured, and print the tables."""
    wanted = {
        name: run
        for name, run in tasks(data).items()
        if not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
    }
    if listing:
        click.echo("\n".join(wanted))
        return
    results.mkdir(parents=True, exist_ok=True)
    journal = results / "speed.jsonl"
    known = read(journal)
    for turn in range(repeat):
        for name, run in wanted.items():
            if len(known.get(name, ())) > turn:
                continue
            values = run()
            known.setdefault(name, []).append(values)
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"task": name, "values": values}) + "\n")
            click.echo(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()), err=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    click.echo(f"{cores} cores; medians\n\n{report(known)}")
    if curves(medians(known)):
        draw(known, results / "speed.png")
        click.echo(f"\nwrote {results / 'speed.png'}")


if __name__ == "__main__":
    main()
