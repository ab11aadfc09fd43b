"""The job behind the command line: load, prune, write, report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subprune_fx import api
from subprune_fx.cli import table
from subprune_fx.cli.options import PROGRAM, Request
from subprune_fx.cli.progress import Progress
from subprune_fx.errors import SubpruneError
from subprune_fx.formats import arrays, atomic, write
from subprune_fx.formats.lines import first_line
from subprune_fx.formats.load import Loaded, load_model
from subprune_fx.frontends.onnx_static import fixed_batch, settle
from subprune_fx.passes.explain import explain
from subprune_fx.report import Report
from subprune_fx.team import Team, team_of_environment

SYNTHETIC_SAMPLES = 256


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
    if loaded.accepts and loaded.accepts[0] is not None:
        what = f"takes batches of exactly {loaded.accepts[0]}, and compiling needs any size"
        raise SubpruneError(what, where=str(request.model), remedy="export it again with dynamic_shapes for axis 0")
    calibration, notes = _calibration(request, loaded)
    module = settle(loaded.module, calibration)
    for path in request.output:
        write.writer_of(path, module)
    example = calibration[: fixed_batch(module) or 1]
    _probe(module, example, str(request.model))
    shape = (None, *example.shape[1:])
    evaluation, training, verification = (
        None if path is None else arrays.load_evaluation(path, shape)
        for path in (request.evaluate, request.train, request.verify)
    )
    labels = arrays.load_labels(request.calib) if request.calib else None

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
            report = dataclasses.replace(pruned.report, files=rows, notes=(*notes, *pruned.report.notes))
            if request.json is not None:
                temporaries[request.json].write_text(_as_json(report), encoding="utf-8")
            team.wait()  # nothing is in place before all have come to the end
    if not request.quiet:
        _say(report, request.verbose)
    return 0


def _explain(request: Request) -> int:
    """Print the dependency graph, and draw it where asked to."""
    loaded = load_model(request.model, arch=request.arch, trust=request.trust)
    example = _calibration(request, loaded)[0][:2]
    module = settle(loaded.module, example)
    _probe(module, example, str(request.model))
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


def _calibration(request: Request, loaded: Loaded) -> tuple[Tensor, list[str]]:
    """The calibration inputs, and warnings about them."""
    stated = request.input_shape
    accepts: Sequence[int | None] | None = stated or loaded.accepts
    notes: list[str] = []
    if request.calib is not None:
        return torch.from_numpy(arrays.load_calibration(request.calib, accepts)), notes
    shape = stated or loaded.input_shape
    if shape is None:
        what = "its input shape is not known"
        raise SubpruneError(
            what, where=str(request.model), remedy="pass --calib X.npz, or --input-shape such as 1,3,32,32"
        )
    notes.append(
        f"no --calib: calibrated on {SYNTHETIC_SAMPLES} synthetic inputs (standard normal noise of shape "
        f"{tuple(shape[1:])}); accuracy will suffer, give a few hundred real inputs"
    )
    return torch.from_numpy(arrays.synthetic(shape, SYNTHETIC_SAMPLES, request.seed)), notes


def _probe(module: nn.Module, example: Tensor, where: str) -> None:
    """Run the network once: whatever it raises on this input is the user's to see, in one line."""
    needed = _required_inputs(module)
    if len(needed) > 1:
        what = f"takes {len(needed)} inputs ({', '.join(needed)}), only one is supported"
        raise SubpruneError(what, where=where, remedy="wrap it in a module that takes one tensor")
    try:
        with torch.no_grad():
            module(example)
    except Exception as error:
        what = f"fails on an input of shape {tuple(example.shape)}: {type(error).__name__}: {first_line(error)}"
        raise SubpruneError(what, where=where, remedy="check --calib, --input-shape and the network") from error


def _required_inputs(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [item.name for item in parameters if item.kind in kinds and item.default is inspect.Parameter.empty]


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
