"""A report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from subprune_fx.formats import figures
from subprune_fx.formats.facts import facts
from subprune_fx.report import Point, Report, curve

WORDS = 10
"""The least width of a column of words."""
PIPE_WIDTH = 120  # where stdout is not a terminal, wide enough for layer names not to break


def show(reports: Sequence[Report], *, verbose: bool, console: Console | None = None) -> None:
    """Print what was pruned, what it cost and what was written.

    Args:
        reports: Of one network, or of several made from one calibration.
        verbose: Also what was left alone, why, and how long the stages took.
        console: Where to; None: stdout.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for table in _tables(reports, verbose=verbose):
        console.width = max(console.width, _least(table))  # a figure is never cut short
        console.print(table)
    for path in written(reports):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _tables(reports: Sequence[Report], *, verbose: bool) -> Iterator[Table]:
    """In the order in which they are printed."""
    yield _groups(reports)
    yield _summary(reports[0]) if len(reports) == 1 else _curve(reports)
    for report in reports:
        if report.stages:
            yield _stages(report)
    last = reports[-1]
    if verbose and last.searched:
        steps = ((f"{step.ratio:.3g}", f"{step.value:.2f}") for step in last.searched)
        yield _pairs("ratio tried", "measured", steps)
    if verbose and last.frozen:
        yield _frozen(last)
    if verbose and last.seconds:
        yield _pairs("stage", "seconds", ((name, f"{value:.2f}") for name, value in last.seconds))


def _table(*words: str, figures: Sequence[str], title: str | None = None) -> Table:
    """Columns of words, which are folded where the terminal is narrow, then of figures, which are not."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in words:
        table.add_column(heading, overflow="fold", min_width=WORDS)
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _least(table: Table) -> int:
    """How narrow a table can be: words folded, figures whole, and the space around them."""
    figures = [column for column in table.columns if column.no_wrap]
    widths = [max(map(len, (str(column.header), *map(str, column.cells)))) for column in figures]
    return sum(widths) + WORDS * (len(table.columns) - len(figures)) + 3 * len(table.columns) + 1


def written(reports: Sequence[Report]) -> list[str]:
    """The paths of all networks."""
    paths: list[str] = []
    for report in reports:
        paths += [row.path for row in report.files]
        paths += [row.path for row in report.stages if row.path is not None]
    return list(dict.fromkeys(paths))


def _groups(reports: Sequence[Report]) -> Table:
    """Of one network with errors; of several a column each."""
    alone = len(reports) == 1
    headings = ("kept", "of", "error") if alone else ("of", *(f"kept, {report.ratio:g}x" for report in reports))
    table = _table("group", figures=headings, title="pruned channels")
    for rows in zip(*(report.groups for report in reports), strict=True):
        kept, of = [str(row.kept) for row in rows], str(rows[0].channels)
        cells = (*kept, of, figures.error(rows[0].error)) if alone else (of, *kept)
        table.add_row(_plain(rows[0].name), *cells)
    return table


def _curve(reports: Sequence[Report]) -> Table:
    """What each of several networks costs and is worth; the original on top, columns without a figure left out."""
    first = reports[0]
    before = next((row for row in first.files if row.latency_before_ms is not None), first.files[0])
    rows = [
        Point(
            *(1.0, first.before.parameters, first.before.flops, first.files[0].bytes_before),
            *(before.latency_before_ms, None, first.accuracy_before),
        ),
        *curve(reports),
    ]
    used = figures.columns(rows, CURVE)
    table = _table(figures=list(used))
    for cells in zip(*used.values(), strict=True):
        table.add_row(*cells)
    return table


def _stages(report: Report) -> Table:
    """What quantising has added to pruning."""
    used = figures.columns(report.stages, figures.STAGES)
    table = _table("stage", figures=list(used))
    for row, *cells in zip(report.stages, *used.values(), strict=True):
        table.add_row(_plain(row.name if row.path is None else f"{row.name}: {row.path}"), *cells)
    return table


def _frozen(report: Report) -> Table:
    table = _table("left alone", "because", figures=("channels",))
    for row in report.frozen:
        table.add_row(_plain(row.name), _plain(row.reason), str(row.channels))
    return table


def _summary(report: Report) -> Table:
    table = _table("", figures=("before", "after", "ratio"))
    for fact in facts(report):
        table.add_row(fact.name, fact.before, fact.after, fact.ratio)
    return table


def _pairs(left: str, right: str, rows: Iterator[tuple[str, str]]) -> Table:
    table = _table(left, figures=(right,))
    for pair in rows:
        table.add_row(*pair)
    return table


def _plain(text: str) -> str:
    """Text from the network, with rich's markup taken literally."""
    return text.replace("[", r"\[")


CURVE: dict[str, Callable[[Point], str]] = {
    "ratio": lambda point: f"{point.ratio:g}x",
    "parameters": lambda point: f"{point.parameters:,}",
    "FLOPs": lambda point: f"{point.flops:,}",
    "file size": lambda point: figures.size(point.bytes),
    "latency": lambda point: figures.milliseconds(point.latency_ms),
    "same class": lambda point: figures.percent(point.agreement),
    "output change": lambda point: figures.percent(point.change),
    "accuracy": lambda point: figures.percent(point.accuracy),
}
"""Columns of a curve: heading, and the cell of a point; empty where there is no figure."""
