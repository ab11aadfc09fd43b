"""A report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from subprune_fx.report import FileRow, Report

PIPE_WIDTH = 120  # where stdout is not a terminal, wide enough for layer names not to break


def show(report: Report, *, verbose: bool, console: Console | None = None) -> None:
    """Print what was pruned, what it cost and what was written.

    Args:
        report: Of one compilation.
        verbose: Also what was left alone, why, and how long the stages took.
        console: Where to; None: stdout.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(_groups(report))
    console.print(_summary(report))
    if verbose and report.frozen:
        console.print(_frozen(report))
    if verbose and report.seconds:
        console.print(_pairs("stage", "seconds", ((name, f"{value:.2f}") for name, value in report.seconds)))
    for row in report.files:
        console.print(f"wrote {row.path}", markup=False, highlight=False, soft_wrap=True)


def _groups(report: Report) -> Table:
    table = Table("group", box=box.SIMPLE_HEAD, title="pruned channels", title_justify="left")
    for heading in ("kept", "of", "error"):
        table.add_column(heading, justify="right")
    for row in report.groups:
        table.add_row(_plain(row.name), str(row.kept), str(row.channels), f"{row.error:.4f}")
    return table


def _frozen(report: Report) -> Table:
    table = Table("left alone", box=box.SIMPLE_HEAD)
    table.add_column("channels", justify="right")
    table.add_column("because")
    for row in report.frozen:
        table.add_row(_plain(row.name), str(row.channels), _plain(row.reason))
    return table


def _summary(report: Report) -> Table:
    table = Table("", box=box.SIMPLE_HEAD)
    for heading in ("before", "after", "ratio"):
        table.add_column(heading, justify="right")
    before, after = report.before, report.after
    table.add_row("parameters", *_counts(before.parameters, after.parameters))
    table.add_row("FLOPs (multiply-adds, one sample)", *_counts(before.flops, after.flops))
    for row in report.files:
        for cells in _file(row):
            table.add_row(*cells)
    if report.agreement is not None:
        table.add_row("same class as the original", "", _percent(report.agreement), "")
    if report.accuracy_after is not None:
        table.add_row("accuracy", _percent(report.accuracy_before), _percent(report.accuracy_after), "")
    return table


def _file(row: FileRow) -> Iterator[tuple[str, str, str, str]]:
    suffix = row.path[row.path.rfind(".") :]
    yield (
        f"file size, {suffix}",
        _bytes(row.bytes_before),
        _bytes(row.bytes),
        _ratio(row.bytes_before, row.bytes),
    )
    if row.latency_ms is not None:
        before, after = _milliseconds(row.latency_before_ms), _milliseconds(row.latency_ms)
        yield "latency, onnxruntime, one sample", before, after, _ratio(row.latency_before_ms, row.latency_ms)
    if row.max_difference is not None:
        yield f"largest difference to torch, {suffix}", "", f"{row.max_difference:.1e}", ""


def _pairs(left: str, right: str, rows: Iterator[tuple[str, str]]) -> Table:
    table = Table(left, box=box.SIMPLE_HEAD)
    table.add_column(right, justify="right")
    for pair in rows:
        table.add_row(*pair)
    return table


def _counts(before: int, after: int) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", _ratio(before, after)


def _ratio(before: float | None, after: float) -> str:
    return "" if before is None or after <= 0 else f"{before / after:.2f}x"


def _bytes(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.2f} MB"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} ms"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _plain(text: str) -> str:
    """Text from the network, with rich's markup taken literally."""
    return text.replace("[", r"\[")
