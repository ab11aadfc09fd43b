"""What a compilation leaves behind: networks, one a goal, and the report; all files together or none."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from subprune_fx.api import Pruned
from subprune_fx.bundle import Inputs
from subprune_fx.cli import table
from subprune_fx.cli.options import PROGRAM, Request
from subprune_fx.errors import SubpruneError
from subprune_fx.formats import atomic, write
from subprune_fx.report import Report, curve
from subprune_fx.team import Team

Progress = Callable[[str, int, int], None]


def networks(request: Request) -> list[list[Path]]:
    """Where the network goes, once or for each ratio of --pareto: `out.onnx`, or `out-2.onnx`, `out-4.onnx`."""
    if not request.pareto:
        return [list(request.output)]
    return [[path.with_stem(f"{path.stem}-{ratio:g}") for path in request.output] for ratio in request.pareto]


def targets(request: Request) -> list[Path]:
    """All files to be written, checked.

    Raises:
        SubpruneError: One cannot be written, has a suffix of no format, is named twice, or is also an input.
    """
    for path in request.output:
        write.writer_of(path)
    reports = [path for path in (request.json,) if path is not None]
    found = atomic.check_targets([path for paths in networks(request) for path in paths] + reports)
    read = (request.model, request.calib, request.evaluate, request.train, request.verify, request.layers)
    inputs = {Path(path).resolve() for path in read if path is not None}
    for path in found:
        if path.resolve() in inputs:
            raise SubpruneError("is an input as well as an output", where=str(path), remedy="write to another file")
    return found


def deliver(
    request: Request,
    pruned: Sequence[Pruned],
    original: nn.Module,
    example: Inputs,
    calibration: Inputs,
    notes: Sequence[str],
    team: Team,
    progress: Progress,
) -> list[Report]:
    """Write networks and report.

    Args:
        request: The command line.
        pruned: A network for each of `networks`.
        original: The network before.
        example: One input.
        calibration: Inputs that files are compared on.
        notes: Warnings that come first.
        team: Processes that have done the same.
        progress: Told (stage, done, total).

    Returns:
        The reports with what was written.

    Raises:
        SubpruneError: See `subprune_fx.formats.write.fill`.
    """
    reports = []
    with write.Baseline(original, example) as baseline, atomic.staged(targets(request)) as temporaries:
        for paths, result in zip(networks(request), pruned, strict=True):
            files = {path: temporaries[path] for path in paths}
            rows = write.fill(
                *(result.module, baseline, example, calibration, files), threads=request.threads, progress=progress
            )
            every = dict.fromkeys([*notes, *result.report.notes])
            reports.append(dataclasses.replace(result.report, files=rows, notes=tuple(every)))
        if request.json is not None:
            temporaries[request.json].write_text(as_json(reports), encoding="utf-8")
        team.wait()  # nothing is in place before all have come to the end
    return reports


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
