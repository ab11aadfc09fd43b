"""The job behind the command line: load, prune, write, report."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import fx

from subprune_fx import api
from subprune_fx.bundle import Inputs
from subprune_fx.cli import outputs
from subprune_fx.cli.inputs import calibration_of, labelled_of, probe
from subprune_fx.cli.options import Request
from subprune_fx.cli.progress import Progress
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.layers import load_layers
from subprune_fx.formats.load import Loaded, load_model
from subprune_fx.frontends.onnx_static import file_batch, fixed_batch, resolve_batch
from subprune_fx.heap import keep
from subprune_fx.option_values import FILES
from subprune_fx.passes.explain import explain
from subprune_fx.passes.writers import writer_of
from subprune_fx.plan import Plan
from subprune_fx.repeating import repeat
from subprune_fx.samples import enough
from subprune_fx.team import Team, team_of_environment

CHOICES = (
    *("select", "variant", "budget", "target", "threads", "only", "skip", "align", "reweight", "intercept"),
    *("feedback", "rounds", "ridge", "rows", "distil", "stochastic", "memory", "precision", "seed"),
)
"""Options that `subprune_fx.prune` has under the same name."""

FEW = 32
"""Calibration inputs below which there is a warning."""


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
            request = dataclasses.replace(request, output=(), json=None, report=None, quiet=True)
        torch.manual_seed(request.seed)
        try:
            return _explain(request) if request.explain else _compile(request, team)
        except SubpruneError as error:
            if error.where != fx.GraphModule.__name__:
                raise
            # The class of a graph from a file says nothing.
            raise type(error)(error.what, where=str(request.model), remedy=error.remedy) from error


def _compile(request: Request, team: Team) -> int:
    outputs.targets(request)
    layers = load_layers(request.layers) if request.layers else ()
    plan = None if request.plan is None else Plan.load(request.plan)
    times = [time.perf_counter()]
    loaded = _load(request)
    times.append(time.perf_counter())
    samples = calibration_of(request, loaded)
    calibration, labels = samples.inputs, samples.labels
    module = resolve_batch(loaded.module, calibration)
    for path in request.output:
        writer_of(path, module)
    example = calibration[: file_batch(module) or 1]
    enough(calibration, file_batch(module), "--calib")
    probe(module, example, str(request.model))
    choices: dict[str, Any] = {
        "labels": labels,
        **labelled_of(request, dataclasses.replace(loaded, module=module), calibration),
        "team": team,
        "file": next((path.suffix.lower() for path in request.output if path.suffix.lower() in FILES), ".onnx"),
        "layers": layers,
        **{name: getattr(request, name) for name in CHOICES},
    }
    times.append(time.perf_counter())
    spent = tuple(zip(("load", "inputs"), np.diff(times).tolist(), strict=True))
    with Progress(shown=not request.quiet) as progress:
        choices["progress"] = progress
        if plan is not None:
            pruned = [repeat(module, plan, calibration, choices["evaluation"])]
        elif request.pareto:
            pruned = list(api.prune_each(module, calibration, ratios=request.pareto, **choices))
        else:
            pruned = [api.prune(module, calibration, ratio=request.ratio, max_drop=request.max_drop, **choices)]
        notes = () if plan is not None else (*samples.notes, *_few(calibration))  # inputs decide nothing of a plan
        compared = calibration, choices["evaluation"], notes, spent, times[0]
        reports = outputs.deliver(request, pruned, outputs.Setting(module, example, *compared, team, progress))
    if not request.quiet:
        outputs.say(reports, verbose=request.verbose)
    return 0


def _load(request: Request) -> Loaded:
    loaded = load_model(request.model, arch=request.arch, trust=request.trust)
    keep(sum(parameter.numel() for parameter in loaded.module.parameters()))
    return loaded


def _few(calibration: Inputs) -> tuple[str, ...]:
    """A warning, perhaps."""
    count = len(calibration)
    return (f"calibrated on {count} input{'s' * (count > 1)}; a few hundred keep more accuracy",) if count < FEW else ()


def _explain(request: Request) -> int:
    """Print the dependency graph, and draw it where asked to."""
    outputs.targets(request)
    loaded = _load(request)
    inputs = calibration_of(request, loaded).inputs
    module = resolve_batch(loaded.module, inputs)
    example = inputs[: fixed_batch(module) or 2]
    enough(example, fixed_batch(module), "--calib")
    probe(module, example, str(request.model))
    found = explain(module, example, only=request.only, skip=request.skip)
    if isinstance(module, fx.GraphModule):  # whose class says nothing
        found = dataclasses.replace(found, network=request.model.name)
    found.save(*request.output)
    if not request.quiet:
        print(found)
    return 0
