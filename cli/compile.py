"""The job behind the command line: load, prune, write, report."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subprune_fx import api
from subprune_fx.cli import table
from subprune_fx.cli.inputs import calibration_of, labelled, probe
from subprune_fx.cli.options import PROGRAM, Request
from subprune_fx.cli.progress import Progress
from subprune_fx.errors import SubpruneError
from subprune_fx.formats import atomic, write
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_static import fixed_batch, settle
from subprune_fx.passes.explain import explain
from subprune_fx.report import Report
from subprune_fx.team import Team, team_of_environment


def run(request: Request) -> int:
    """Compile, write and report; with other processes where `torchrun` has started several.

    Args:
        request: The parsed command line.

    Returns:
        0.

    Raises:
        SubpruneError: Something is wrong with the input, or the result (`ValidationError`); nothing was
            written.
    """
    with team_of_environment() as team:
        if team.rank > 0:  # the first writes and speaks
            request = dataclasses.replace(request, output=(), json=None, quiet=True)
        torch.manual_seed(request.seed)
        if request.explain:
            return _explain(request)
        return _compile(request, team)


def _compile(request: Request, team: Team) -> int:
    targets = _targets(request)
    loaded = load_model(request.model, arch=request.arch, trust=request.trust)
    samples = calibration_of(request, loaded)
    calibration, labels = samples.inputs, samples.labels
    module = settle(loaded.module, calibration)
    for path in request.output:
        write.writer_of(path, module)
    example = calibration[: fixed_batch(module) or 1]
    probe(module, example, str(request.model))
    evaluation, training, verification = (
        labelled(path, loaded.takes, calibration) for path in (request.evaluate, request.train, request.verify)
    )

    with Progress(shown=not request.quiet) as progress:
        pruned = api.prune(
            module,
            calibration,
            ratio=request.ratio,
            select=request.select,
            variant=request.variant,
            budget=request.budget,
            target=request.target,
            only=request.only,
            skip=request.skip,
            reweight=request.reweight,
            intercept=request.intercept,
            feedback=request.feedback,
            rounds=request.rounds,
            ridge=request.ridge,
            distil=request.distil,
            stochastic=request.stochastic,
            memory=request.memory,
            labels=labels,
            training=training,
            verification=verification,
            evaluation=evaluation,
            seed=request.seed,
            progress=progress,
            team=team,
        )
        with atomic.staged(targets) as temporaries:
            networks = {path: temporaries[path] for path in request.output}
            rows = write.fill(pruned.module, module, example, calibration, networks, progress=progress)
            report = dataclasses.replace(pruned.report, files=rows, notes=(*samples.notes, *pruned.report.notes))
            if request.json is not None:
                temporaries[request.json].write_text(_as_json(report), encoding="utf-8")
            team.wait()  # nothing is in place before all have come to the end
    if not request.quiet:
        _say(report, request.verbose)
    return 0


def _explain(request: Request) -> int:
    """Print the dependency graph, and draw it where asked to."""
    loaded = load_model(request.model, arch=request.arch, trust=request.trust)
    example = calibration_of(request, loaded).inputs[:2]
    module = settle(loaded.module, example)
    probe(module, example, str(request.model))
    found = explain(module, example)
    for path in request.output:
        found.save(path)
    if not request.quiet:
        print(found)
    return 0


def _targets(request: Request) -> list[Path]:
    targets = [*request.output, *([request.json] if request.json else [])]
    inputs = {
        path.resolve()
        for path in (request.model, request.calib, request.evaluate, request.train, request.verify)
        if path
    }
    for path in request.output:
        write.writer_of(path)
    for path in atomic.check_targets(targets):
        if path.resolve() in inputs:
            raise SubpruneError("is an input as well as an output", where=str(path), remedy="write to another file")
    return targets


def _as_json(report: Report) -> str:
    return json.dumps(_finite(report.as_dict()), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no numpy: null and plain numbers instead."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(report: Report, verbose: bool) -> None:
    for note in report.notes:
        print(f"{PROGRAM}: warning: {' '.join(note.split())}", file=sys.stderr)
    table.show(report, verbose=verbose)
