"""`prune` and `prune_each`: all passes on one network, for one goal or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, Unpack

from torch import Tensor, fx, nn

from subprune_fx.arguments import Choices, check_goals, options_of
from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.frontends.onnx_static import file_batch, fixed_batch, ordered, resolve_batch
from subprune_fx.passes.budgets import unreachable
from subprune_fx.passes.compiled import Compiled
from subprune_fx.passes.distil import divided
from subprune_fx.passes.gauges import GAUGES, reached
from subprune_fx.passes.goals import drop_of, set_aside, within
from subprune_fx.passes.outputs import compared
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.summary import accuracy, cost, frozen_of, rows_of
from subprune_fx.plan import Plan
from subprune_fx.report import Report
from subprune_fx.samples import Given, enough, inputs_of, labelled, labels_of
from subprune_fx.team import ALONE
from subprune_fx.unwrap import network_of


class Pruned(NamedTuple):
    """What `prune` returns.

    Attributes:
        module: The smaller network, a graph module.
        plan: What was done; applies to any instance of the same network.
        report: Sizes, errors, agreement, refusals.
    """

    module: fx.GraphModule
    plan: Plan
    report: Report


def prune(
    model: nn.Module,
    calibration: Given,
    *,
    ratio: float | None = None,
    keep: float | None = None,
    max_drop: float | None = None,
    **choices: Unpack[Choices],
) -> Pruned:
    """Make a trained network smaller from a few hundred unlabelled inputs.

    Args:
        model: The network; unchanged.
        calibration: Inputs as the network takes them, float32, (samples, ...); of a network with several a tuple of
            them, or a dict by the names of its arguments.
        ratio: Size before over size after, above 1; the result meets it. This, `keep` or `max_drop`, or none of them
            where `layers` says it all.
        keep: In place of a ratio: the fraction of its channels that every group keeps, in (0, 1); no budget is needed.
        max_drop: In place of a ratio: the smallest network that loses at most so many percentage points, of accuracy
            on `verification`, or without it of agreement with the original on calibration inputs that are held out.
        choices: See `subprune_fx.arguments.Choices`.

    Returns:
        The smaller network, the plan and the report.

    Raises:
        SubpruneError: An argument is unusable, the network cannot be traced or has nothing to prune, or the ratio is
            out of reach (the message says the largest reachable one).
    """
    goals = {
        name: () if goal is None else (goal,)
        for name, goal in {"ratios": ratio, "keeps": keep, "max_drops": max_drop}.items()
    }
    if sum(map(len, goals.values())) != 1 and not (choices.get("layers") and not any(goals.values())):
        what = "needs exactly one of ratio, keep and max_drop, or layers"
        raise SubpruneError(what, where="prune", remedy="give one of them, such as ratio=4")
    (found,) = prune_each(model, calibration, **goals, **choices)
    return found


def prune_each(
    model: nn.Module,
    calibration: Given,
    *,
    ratios: Sequence[float] = (),
    keeps: Sequence[float] = (),
    max_drops: Sequence[float] = (),
    **choices: Unpack[Choices],
) -> Iterator[Pruned]:
    """`prune` for several goals with one calibration; results come one by one, each from the original network.

    Args:
        model: See `prune`.
        calibration: See `prune`.
        ratios: See `prune`.
        keeps: See `prune`.
        max_drops: See `prune`.
        choices: See `subprune_fx.arguments.Choices`.

    Yields:
        What `prune` returns, in the order of `ratios`, then of `keeps`, then of `max_drops`; without any of
        them, what `layers` asks for.

    Raises:
        SubpruneError: See `prune`.
    """
    check_goals(ratios, keeps, max_drops)
    options, model = options_of(choices), network_of(model)
    inputs = ordered(model, inputs_of(calibration, "calibration"))
    given = choices.get("labels")
    labels = None if given is None else labels_of(given, len(inputs), "labels")
    settled = resolve_batch(model, inputs)
    enough(inputs, (file_batch if options.target in GAUGES else fixed_batch)(settled), "calibration")
    evaluation, verification, training = (_pairs(settled, choices, name) for name in PAIRS)
    aside = None
    if max_drops and verification is None:
        inputs, labels, aside = set_aside(
            inputs, labels, max(fixed_batch(settled) or 1, choices.get("team", ALONE).size)
        )
    judges = None
    if options.distil:
        inputs, labels, judges = divided(inputs, labels, options.seed)
    compiler = Compiler(
        settled,
        inputs,
        options,
        labels,
        training,
        verification,
        choices.get("progress"),
        choices.get("team", ALONE),
        judges=judges,
        budgeted=bool(ratios or max_drops),
    )
    _check_reach(compiler, ratios)
    before = None if evaluation is None else accuracy(compiler.network.graph_module, *evaluation)
    by_ratio = compiler.compile
    if options.target in GAUGES:
        by_ratio = partial(reached, compiler, settled, inputs[: file_batch(settled) or 1])
    goals: list[Callable[[], Compiled]] = [*(partial(by_ratio, ratio) for ratio in ratios)]
    goals += [*(partial(compiler.compile_fraction, keep) for keep in keeps)]
    if max_drops:
        drop = drop_of(compiler, aside)
        goals += [*(partial(within, compiler, drop, limit) for limit in max_drops)]
    if not goals and options.layers:
        goals = [compiler.compile_layers]
    for goal in goals:
        compiled = goal()
        report = _report(compiler, compiled, inputs)
        if evaluation is not None:
            after = accuracy(compiled.module, *evaluation)
            report = dataclasses.replace(report, accuracy_before=before, accuracy_after=after)
        yield Pruned(spread(compiled.module), compiled.plan, report)


PAIRS: tuple[Literal["evaluation", "verification", "training"], ...] = ("evaluation", "verification", "training")
"""Choices that are inputs and their labels."""


def _check_reach(compiler: Compiler, ratios: Sequence[float]) -> None:
    """Of several ratios the last may be out of reach; where it is counted, that is known before the first is met."""
    if not ratios or compiler.options.target in GAUGES:
        return
    most = compiler.most
    for ratio in ratios:
        if ratio > most:
            raise unreachable("ratio", ratio, most)


def _pairs(
    model: nn.Module, choices: Choices, name: Literal["evaluation", "verification", "training"]
) -> tuple[Inputs, Tensor] | None:
    found = labelled(choices.get(name), name)
    if found is None:
        return None
    enough(found[0], fixed_batch(model), name)
    return ordered(model, found[0]), found[1]


def _report(compiler: Compiler, compiled: Compiled, inputs: Inputs) -> Report:
    smaller, network, options = compiled.module, compiler.network, compiler.options
    example = inputs[: fixed_batch(smaller) or 1]
    agreement, change = compared(compiler.outputs, compiled.outputs, compiler.counts, compiler.team)
    settings = {
        "select": options.select,
        "variant": options.variant,
        "budget": compiler.rule,
        "target": options.target,
        "align": compiled.align,
        "reweight": options.reweight,
        "intercept": options.settings.intercept,
        "feedback": options.settings.feedback,
        "rounds": options.settings.rounds,
        "ridge": f"{options.settings.pull:.2g}{' or more' if options.settings.ridge is None else ''}",
        "rows": options.settings.rows,
        "stochastic": options.stochastic,
        "distil": options.distil,
        "seed": options.seed,
        "calibration inputs": len(inputs),
    }
    return Report(
        ratio=compiled.ratio,
        before=cost(network.graph_module, example),
        after=cost(smaller, example),
        groups=rows_of(network.channels, compiled.plan, compiler.curve),
        frozen=frozen_of(network.channels),
        agreement=agreement,
        settings=tuple((name, str(value)) for name, value in settings.items()),
        seconds=tuple(compiled.seconds.items()),
        searched=compiled.searched,
        change=change,
        drop=compiled.drop,
        distilled=compiled.distilled,
    )
