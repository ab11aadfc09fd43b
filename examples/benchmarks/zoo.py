"""Every network of `zoo_table`, pruned to half of its channels: does it come out valid, how small, how fast?

    python examples/benchmarks/zoo.py [--only resnet,vgg11] [--source torchvision] [--limit 300] [--again]

Each network is a process of its own with a time limit, so that a crash is a row and not the end of the run. Finished
rows are kept in RESULTS/zoo.jsonl and skipped next time; zoo.csv and zoo.md are written from it.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch
from zoo_table import Network, build, networks

import subprune_fx
from subprune_fx.api import Pruned
from subprune_fx.bundle import Inputs, call, in_double
from subprune_fx.errors import SubpruneError, ValidationError
from subprune_fx.heap import keep
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.proof import difference
from subprune_fx.plan import Plan
from subprune_fx.samples import inputs_of

KEEP = 0.5
TOLERANCE = 1e-3
"""Of the masked original's output: float32 rounding through a hundred layers; a wrong channel moves it by its scale.

Random networks may be chaotic, and multiply rounding by 1e8; those that differ by more are compared in float64.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one network gave.

    Attributes:
        source: Where the network comes from.
        network: Its name.
        status: `ok`, `refused`, `invalid` (onnxruntime or the masked original disagrees), `failed`, `timeout`.
        parameters: Before.
        groups: Prunable groups.
        frozen: Channels that stay, by reason.
        ratio: Parameters before over after, with half of the channels of every group.
        seconds: Wall time of `prune`.
        total: The same with export, validation and timing of both networks: what the command takes.
        masked: Largest difference to the masked and reweighted original, relative to the largest output.
        parity: Largest difference of onnxruntime's output to torch's.
        before_ms: onnxruntime latency of the original, one sample.
        after_ms: The same of the pruned network.
        message: Why, where the status is not `ok`.
    """

    source: str
    network: str
    status: str
    parameters: int = 0
    groups: int = 0
    frozen: dict[str, int] = dataclasses.field(default_factory=dict)
    ratio: float | None = None
    seconds: float | None = None
    total: float | None = None
    masked: float | None = None
    parity: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    message: str = ""


def measure(network: Network, *, onnx: bool = True) -> Row:
    """Prune one network and check what comes out."""
    row = Row(network.source, network.name, "failed")
    start = time.perf_counter()
    try:
        model = build(network)
        given = network.inputs(network.samples)
        inputs = inputs_of(given, network.name)
        row = dataclasses.replace(row, parameters=sum(p.numel() for p in model.parameters()))
        keep(row.parameters)  # as the command does
        start = time.perf_counter()
        pruned = subprune_fx.prune(model, given, keep=KEEP)
        frozen: Counter[str] = Counter()
        for item in pruned.report.frozen:
            frozen[item.reason] += item.channels
        row = dataclasses.replace(
            row,
            groups=len(pruned.report.groups),
            frozen=dict(frozen),
            ratio=round(pruned.report.achieved, 3),
            seconds=round(time.perf_counter() - start, 2),
        )
        row = _compared(row, model, pruned, inputs)
        start = time.perf_counter() - (row.seconds or 0.0)  # comparing is this script's, not the command's
        if onnx:
            row = _written(row, pruned.module, model, inputs)
        row = dataclasses.replace(row, status="ok")
    except SubpruneError as error:
        row = dataclasses.replace(row, status="refused", message=str(error))
        if isinstance(error, ValidationError):
            row = dataclasses.replace(row, status="invalid")
    except Exception as error:  # noqa: BLE001 - the row says so
        lines = str(error).strip().splitlines() or [""]
        row = dataclasses.replace(row, message=f"{type(error).__name__}: {lines[0]}"[:300])
    return dataclasses.replace(row, total=round(time.perf_counter() - start, 2))


def _compared(row: Row, model: torch.nn.Module, pruned: Pruned, inputs: Inputs) -> Row:
    """The pruned network's outputs against the masked and reweighted original's.

    Raises:
        ValidationError: They differ by more than rounding.
    """
    few = inputs[:4]
    worst = _apart(model, pruned.module, pruned.plan, few)
    if not worst < TOLERANCE:
        worst = _apart(
            copy.deepcopy(model).double(), copy.deepcopy(pruned.module).double(), pruned.plan, in_double(few)
        )
    if not worst < TOLERANCE:
        raise ValidationError(f"differs from the masked original by {worst:.1e} of its scale", where=row.network)
    return dataclasses.replace(row, masked=worst)


@torch.no_grad()
def _apart(model: torch.nn.Module, pruned: torch.nn.Module, plan: Plan, few: Inputs) -> float:
    return difference(call(pruned, few), Masked(analyse(model, few), plan).run(few))


def _written(row: Row, module: torch.nn.Module, model: torch.nn.Module, inputs: Inputs) -> Row:
    """Parity and latencies of the ONNX file."""
    from subprune_fx.passes.write import write_all  # noqa: PLC0415 - imports onnx

    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        (file,) = write_all(module, model, inputs[:1], inputs, [Path(folder) / "small.onnx"])
    return dataclasses.replace(
        row, parity=file.max_difference, before_ms=file.latency_before_ms, after_ms=file.latency_ms
    )


def isolated(network: Network, limit: float, *, onnx: bool) -> Row:
    """`measure` in a process that is ended after `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(network.name, onnx, there))
    process.start()
    there.close()
    try:
        if not here.poll(limit):
            return Row(network.source, network.name, "timeout", message=f"{limit:g} s")
        found = here.recv()
    except EOFError:
        process.join()
        return Row(network.source, network.name, "failed", message=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    assert isinstance(found, Row)
    return found


def _child(name: str, onnx: bool, pipe: Connection) -> None:
    network = next(network for network in networks() if network.name == name)
    pipe.send(measure(network, onnx=onnx))


def read(path: Path) -> dict[str, Row]:
    """Finished rows by name; a line cut off by an interruption is dropped."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Row(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        rows[row.network] = row
    return rows


COLUMNS: dict[str, Callable[[Row], str]] = {
    "network": lambda row: row.network,
    "status": lambda row: row.status,
    "parameters": lambda row: f"{row.parameters:,}",
    "groups": lambda row: str(row.groups),
    "ratio": lambda row: _number(row.ratio, ".2f"),
    "seconds": lambda row: _number(row.seconds, ".1f"),
    "with export": lambda row: _number(row.total, ".1f"),
    "masked": lambda row: _number(row.masked, ".1e"),
    "parity": lambda row: _number(row.parity, ".1e"),
    "ms before": lambda row: _number(row.before_ms, ".2f"),
    "ms after": lambda row: _number(row.after_ms, ".2f"),
    "frozen channels": lambda row: "; ".join(f"{count} {reason}" for reason, count in row.frozen.items()),
    "message": lambda row: row.message,
}


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def save(rows: Sequence[Row], folder: Path) -> None:
    """Write zoo.csv and zoo.md."""
    with (folder / "zoo.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", *COLUMNS])
        writer.writerows([row.source, *(cell(row) for cell in COLUMNS.values())] for row in rows)
    lines = ["# Half of the channels of every group", "", summary(rows)]
    for source in dict.fromkeys(row.source for row in rows):
        lines += ["", f"## {source}", "", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        for row in rows:
            if row.source == source:
                cells = (cell(row).replace("|", "/") for cell in COLUMNS.values())
                lines.append(f"| {' | '.join(cells)} |")
    (folder / "zoo.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def summary(rows: Iterable[Row]) -> str:
    """How many ended how, and the times."""
    rows = list(rows)
    counts = Counter(row.status for row in rows)
    times = [row.total for row in rows if row.status == "ok" and row.total is not None]
    parts = [f"{len(rows)} networks: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())]
    if times:
        parts.append(f"seconds with export: median {statistics.median(times):.1f}, largest {max(times):.1f}")
    return "; ".join(parts)


@click.command(help=__doc__)
@click.option("--only", default="", help="Parts of names, separated by commas.")
@click.option("--skip", default="", help="Parts of names to leave out.")
@click.option("--source", default="", help="torchvision, timm or transformers.")
@click.option("--limit", default=300.0, help="Seconds a network.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"))
@click.option("--onnx/--no-onnx", default=True, help="Write, validate and time ONNX files.")
@click.option("--again", is_flag=True, help="Run those that did not end well once more.")
def main(only: str, skip: str, source: str, limit: float, results: Path, onnx: bool, again: bool) -> None:
    """Run what has no row yet, then write the tables."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / "zoo.jsonl"
    rows = read(path)
    parts, others = ([part for part in names.split(",") if part] for names in (only, skip))
    for network in networks():
        wanted = source in ("", network.source) and (not parts or any(part in network.name for part in parts))
        wanted = wanted and not any(part in network.name for part in others)
        known = rows.get(network.name)
        if not wanted or (known is not None and not (again and known.status != "ok")):
            continue
        row = isolated(network, limit, onnx=onnx)
        rows[network.name] = row
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        click.echo(f"{row.network:32s} {row.status:8s} {_number(row.ratio, '.2f'):>6s} "
                   f"{_number(row.seconds, '.1f'):>6s} {_number(row.total, '.1f'):>6s} {row.message}")  # fmt: skip
    order = {network.name: place for place, network in enumerate(networks())}
    ordered = sorted(rows.values(), key=lambda row: order.get(row.network, len(order)))
    save(ordered, results)
    click.echo(summary(ordered))


if __name__ == "__main__":
    main()
