"""What a compilation leaves behind: networks, one a goal, and the report; all files together or none."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from subprune_fx.api import Pruned
from subprune_fx.bundle import Inputs
from subprune_fx.cli import table
from subprune_fx.cli.options import Request
from subprune_fx.cli.values import PROGRAM
from subprune_fx.errors import SubpruneError
from subprune_fx.formats import atomic
from subprune_fx.formats.drawing import drawing_of
from subprune_fx.formats.page import page
from subprune_fx.passes import write
from subprune_fx.passes.baseline import Baseline
from subprune_fx.passes.clock import Progress
from subprune_fx.passes.quantise import quantise
from subprune_fx.passes.stages import stages
from subprune_fx.passes.writers import writer_of
from subprune_fx.report import FileRow, Report, Stage, curve
from subprune_fx.team import Team

PAGES = (".html", ".htm")
SLOWER, MEASURABLE = 1.25, 0.2
"""How many times the original's latency is worth a warning, and from how many milliseconds on."""

LAGS = 0.7
"""Of the multiply-adds that are saved, what latency should gain at least."""


def networks(request: Request) -> list[list[Path]]:
    """Where the network goes, once or for each ratio of --pareto: `out.onnx`, or `out-2.onnx`, `out-4.onnx`."""
    if not request.pareto:
        return [list(request.output)]
    return [[path.with_stem(f"{path.stem}-{ratio:g}") for path in request.output] for ratio in request.pareto]


def quantised(request: Request, paths: Sequence[Path]) -> dict[Path, Path]:
    """By ONNX file, where its quantised form goes: `out.onnx`, `out-int8.onnx`."""
    files = [path for path in paths if request.quantize and path.suffix.lower() == ".onnx"]
    return {path: path.with_stem(f"{path.stem}-{request.quantize}") for path in files}


def targets(request: Request) -> list[Path]:
    """All files to be written, checked.

    Raises:
        SubpruneError: One cannot be written, has a suffix of no format, is named twice, or is also an input.
    """
    check: Callable[[Path], object] = drawing_of if request.explain else writer_of
    for path in request.output:
        check(path)
    if request.report is not None and request.report.suffix.lower() not in PAGES:
        raise SubpruneError("is no page", where=str(request.report), remedy=f"end it in {' or '.join(PAGES)}")
    reports = [path for path in (request.json, request.report) if path is not None]
    files = [path for paths in networks(request) for path in (*paths, *quantised(request, paths).values())]
    found = atomic.check_targets([*files, *reports])
    read = (request.model, request.calib, request.evaluate, request.train, request.verify, request.layers, request.plan)
    inputs = {Path(path).resolve() for path in read if path is not None}
    for path in found:
        if path.resolve() in inputs:
            raise SubpruneError("is an input as well as an output", where=str(path), remedy="write to another file")
    return found


@dataclasses.dataclass(frozen=True)
class Setting:
    """What networks are compared with, and on what.

    Attributes:
        original: The network before.
        example: One input.
        calibration: Inputs that files are compared on.
        evaluation: Labelled inputs, if there are any.
        notes: Warnings that come first.
        seconds: What came before the compilation, and how long it took.
        start: When the first of it began.
        team: Processes that do the same.
        progress: Told (stage, done, total).
    """

    original: nn.Module
    example: Inputs
    calibration: Inputs
    evaluation: tuple[Inputs, Tensor] | None
    notes: Sequence[str]
    seconds: Sequence[tuple[str, float]]
    start: float
    team: Team
    progress: Progress


def deliver(request: Request, pruned: Sequence[Pruned], setting: Setting) -> list[Report]:
    """Write networks and report.

    Args:
        request: The command line.
        pruned: A network for each of `networks`.
        setting: What they are compared with.

    Returns:
        The reports with what was written.

    Raises:
        SubpruneError: See `subprune_fx.passes.write.fill`.
    """
    reports = []
    baseline = Baseline(setting.original, setting.example)
    with baseline, atomic.staged(targets(request)) as temporaries:
        for paths, result in zip(networks(request), pruned, strict=True):
            start = time.perf_counter()
            rows = write.fill(
                *(result.module, baseline, setting.example, setting.calibration),
                {path: temporaries[path] for path in paths},
                plan=result.plan,
                threads=request.threads,
                progress=setting.progress,
            )
            steps: tuple[Stage, ...] = ()
            for path, smaller in quantised(request, paths).items():
                made = {"pruned": (temporaries[path], path), str(request.quantize): (temporaries[smaller], smaller)}
                steps += _quantise(made, baseline.file(writer_of(path, setting.original), ".onnx"), request, setting)
            saved = result.report.before.flops / max(1, result.report.after.flops)
            known = (*setting.notes, *result.report.notes, *bound(rows), *slow(rows, request, saved))
            notes = tuple(dict.fromkeys(known))
            now = time.perf_counter()
            last = (("write", now - start), ("in all", now - setting.start))
            seconds = (*setting.seconds, *result.report.seconds, *last)
            reports.append(dataclasses.replace(result.report, files=rows, notes=notes, stages=steps, seconds=seconds))
        if request.json is not None:
            with atomic.naming(request.json):
                temporaries[request.json].write_text(as_json(reports), encoding="utf-8")
        if request.report is not None:
            with atomic.naming(request.report):
                temporaries[request.report].write_text(page(reports, request.model.name), encoding="utf-8")
        setting.team.wait()  # nothing is in place before all have come to the end
    return reports


def slow(rows: Sequence[FileRow], request: Request, saved: float) -> tuple[str, ...]:
    """A warning where a file takes longer than the original, or not so much less as it has less to do.

    By default widths that onnxruntime is slow on remain where layers are narrow: ResNet56 at ratio 2, with 0.57 of the
    multiply-adds, takes 0.77 times as long, with multiples of 8 0.73 times.

    Args:
        rows: The files.
        request: The command line.
        saved: Multiply-adds before over after.
    """
    if request.align is not None or request.plan is not None or request.target == "latency":
        return ()
    times = [(row.latency_before_ms, row.latency_ms) for row in rows if row.latency_before_ms and row.latency_ms]
    remedy = "onnxruntime is fast on widths in multiples of 8, try --align 8"
    if any(after > max(SLOWER * before, MEASURABLE) for before, after in times):
        return (f"slower than the original: {remedy}",)
    lagging = [before / after for before, after in times if before > MEASURABLE and before / after < LAGS * saved]
    if not lagging:
        return ()
    return (f"{min(lagging):.2f} times as fast as the original, with 1 / {saved:.2f} of its multiply-adds: {remedy}",)


def bound(rows: Sequence[FileRow]) -> tuple[str, ...]:
    """A warning for each file that takes one number of inputs only."""
    why = "torch.export cannot leave it open in this network"
    return tuple(f"{row.path} takes batches of exactly {row.batch}: {why}" for row in rows if row.batch is not None)


def _quantise(
    made: Mapping[str, tuple[Path, Path]], original: Path | None, request: Request, setting: Setting
) -> tuple[Stage, ...]:
    """Write the last of the files from the one before it, and measure all."""
    (source, _), (target, name) = made.values()
    setting.progress("quantise", 0, 1)
    quantise(source, target, setting.calibration, where=str(name))
    rows = stages(
        *(original, made, setting.calibration, setting.evaluation), example=setting.example, threads=request.threads
    )
    setting.progress("quantise", 1, 1)
    return rows


def say(reports: Sequence[Report], *, verbose: bool) -> None:
    """Warnings to stderr, tables to stdout."""
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        print(f"{PROGRAM}: warning: {' '.join(note.split())}", file=sys.stderr)
    table.show(reports, verbose=verbose)


def as_json(reports: Sequence[Report]) -> str:
    """One report, or of several the curve and all of them."""
    trees = [report.as_dict() for report in reports]
    points = [dataclasses.asdict(point) for point in curve(reports)]
    tree = trees[0] if len(trees) == 1 else {"curve": points, "reports": trees}
    return json.dumps(_finite(tree), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no numpy: null and plain numbers instead."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
