"""The options of `prune`: what they mean, checked and put in order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from subprune_fx.errors import SubpruneError
from subprune_fx.option_values import BUDGETS, FILES, PRECISIONS, SEEDS, TARGETS, VARIANTS
from subprune_fx.passes.clock import Progress
from subprune_fx.passes.options import Options
from subprune_fx.passes.problems import Settings
from subprune_fx.plan import Layer
from subprune_fx.samples import Array, Given
from subprune_fx.selectors import LABELLED, SELECTORS, Need
from subprune_fx.sizes import size_of
from subprune_fx.team import Team


class Choices(TypedDict, total=False):
    """Keywords of `subprune_fx.prune` and `prune_each`; what is left out has the default of `Options`.

    Attributes:
        select: How units are chosen, a key of `subprune_fx.selectors.SELECTORS`.
        variant: Which inputs consumers are fitted on (paper section 5.1): `asym`, the pruned network's, towards the
            original's outputs; `seq`, the pruned network's; `layer`, the original's.
        budget: How the ratio is shared out among groups, a key of `passes.budgets.BUDGETS`; None for the selector's
            own rule, where it has one, or the default.
        target: What the ratio counts: `params`, or `flops`, the multiply-adds of one sample; or what it measures:
            `size`, the bytes of the file, or `latency` in onnxruntime. (`keep`, `layers` and `max_drop` measure
            nothing of this: there parameters stand for `size`, and multiply-adds for `latency`.)
        file: Suffix of the file that `size` is about: `.onnx`, `.pt2` or `.pt`.
        threads: Threads of onnxruntime where it is timed; 0 for all cores.
        only: Patterns (`fnmatch`) of layers to prune, as the report names them; none: all that can be.
        skip: Patterns of layers to leave alone.
        align: Widths of pruned layers are multiples of this: 8 suits many processors. None: 4 for layers of 16 and more
            channels that convolutions read, else 1; for the target `latency` whichever of 8, 4 and 1 meets the ratio
            with the most multiply-adds left.
        layers: What single layers are to keep, whatever the budget; of several that match a layer the last counts.
            Without a ratio only these are pruned.
        reweight: Refit the weights of layers that read pruned channels (paper eq. 4).
        intercept: Refit their biases too.
        feedback: Let a layer whose output is added to another value make up for what that value has lost.
        rounds: How often a layer is refitted to what the activation behind it lets through; 0: not at all.
        ridge: How strongly new weights are pulled towards the original ones, relative to the mean diagonal of the Gram
            matrix. None: 0.001, with n < 512 inputs (512 / n)^2 times as much, at most 0.064; in layers that read one
            row of each sample, which a few hundred samples hardly determine, as much more as generalised
            cross-validation asks for.
        rows: Output positions that a convolution is fitted on, over all calibration inputs, for each weight of an
            output channel; 0: all there are. Positions are left out only where there are at least twice as many.
        stochastic: Epsilon of stochastic greedy (paper App. B.3), in (0, 1); None for exact greedy.
        distil: Steps of label-free distillation towards the original network on the calibration inputs, after
            pruning. This is training; 0: none.
        memory: Most memory for activations, in bytes or as `4GiB`: what is more goes to temporary files, and fewer
            inputs are run at a time. Second moments and the network itself come on top. None: no limit.
        precision: Of forward passes over the calibration inputs: `float32`, `bf16`, or on an NVIDIA GPU `tf32`. Second
            moments and least squares stay float32 and float64.
        labels: Class of each calibration input, (samples,); the `accuracy` budget uses them, and some selectors
            cannot do without.
        training: More labelled inputs, which only the selector `layergreedyfs-fd` reads.
        verification: Labelled inputs on which the `accuracy` budget measures, instead of the calibration inputs.
        evaluation: Inputs and labels whose accuracy the report states; decides nothing.
        seed: Seed of everything random.
        progress: Called with a stage's name, how many of its steps are done, and how many there are.
        team: The processes that call this together, with the same arguments: each runs its share of the inputs, and all
            get the same result. See `subprune_fx.team.team_of_environment`.
    """

    select: str
    variant: str
    budget: str | None
    target: str
    file: str
    threads: int
    only: Sequence[str]
    skip: Sequence[str]
    align: int | None
    layers: Sequence[Layer]
    reweight: bool
    intercept: bool
    feedback: bool
    rounds: int
    ridge: float | None
    rows: int
    stochastic: float | None
    distil: int
    memory: int | str | None
    precision: str
    labels: Array | None
    training: tuple[Given, Array] | None
    verification: tuple[Given, Array] | None
    evaluation: tuple[Given, Array] | None
    seed: int
    progress: Progress | None
    team: Team


def options_of(choices: Choices) -> Options:
    """The choices that decide something, as the pipeline takes them.

    Raises:
        SubpruneError: One of them is unusable.
        TypeError: There is no such keyword.
    """
    unknown = choices.keys() - Choices.__annotations__.keys()
    if unknown:
        message = f"prune() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(message)
    given: dict[str, Any] = dict(choices)
    for name, (fits, wanted) in _CHECKS.items():
        if name in given and not fits(given[name]):
            raise SubpruneError(f"{name} {given[name]!r} is not {wanted}")
    for name, (noun, table) in _TABLES.items():
        if given.get(name) is not None and given[name] not in table:
            raise SubpruneError(f"no {noun} {given[name]!r}", remedy=f"use one of {', '.join(table)}")
    if isinstance(given.get("memory"), str):
        given["memory"] = _size(given["memory"])
    lists: dict[str, Any] = {name: tuple(given.get(name, ())) for name in ("only", "skip", "layers")}
    _check_layers(lists["layers"])
    options = Options(**_fields(Options, {**given, **lists}), settings=Settings(**_fields(Settings, given)))
    _check_labels(options.select, choices)
    return options


def _fields(kind: type[Options | Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of the fields of a dataclass."""
    return {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise SubpruneError(str(error), where="memory") from error


def _check_layers(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if (layer.ratio is None) == (layer.channels is None):
            raise SubpruneError("needs a ratio or a number of channels, one of the two", where=layer.pattern)
        if layer.ratio is not None and not (math.isfinite(layer.ratio) and layer.ratio >= 1):
            raise SubpruneError(
                f"{layer} is not a number of at least 1", where=layer.pattern, remedy="1 keeps it whole"
            )


Check = tuple[Callable[[Any], bool], str]
"""Whether a value is fine, and what it should have been."""

_COUNT: Check = (lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0")
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("threads", "rows", "rounds", "distil"), _COUNT),
    "align": (lambda value: value is None or (isinstance(value, int) and value >= 1), "a whole number of at least 1"),
    "ridge": (lambda value: value is None or (math.isfinite(value) and value >= 0), "a number of at least 0"),
    "stochastic": (lambda value: value is None or 0 < value < 1, "between 0 and 1"),
    "seed": (
        lambda value: isinstance(value, (int, np.integer)) and 0 <= int(value) < SEEDS,
        f"a whole number from 0 to {SEEDS - 1}",
    ),
    "memory": (lambda value: not isinstance(value, int) or value > 0, "a number of bytes above 0"),
}
_TABLES: dict[str, tuple[str, Sequence[str]]] = {
    "variant": ("variant", VARIANTS),
    "budget": ("budget rule", BUDGETS),
    "target": ("target", TARGETS),
    "select": ("selector", tuple(SELECTORS)),
    "precision": ("precision", PRECISIONS),
    "file": ("file format", FILES),
}


def _check_labels(select: str, choices: Choices) -> None:
    needs = SELECTORS[select].needs
    if Need.TRAINING in needs and choices.get("training") is None:
        what = f"selector {select} needs labelled training inputs, and there are none"
        raise SubpruneError(what, remedy="give training=(x, y) (on the command line, --train XY.npz)")
    if Need.TRAINING not in needs and choices.get("labels") is None and needs & LABELLED:
        what = f"selector {select} needs the class of each calibration input, and there are none"
        raise SubpruneError(what, remedy="give labels (on the command line, y beside x in the --calib file)")


def check_goals(ratios: Sequence[float], keeps: Sequence[float], drops: Sequence[float]) -> None:
    """Refuse what is no ratio, no fraction or no drop.

    Raises:
        SubpruneError: A ratio is not a number above 1, a fraction not between 0 and 1, a drop not between 0 and 100.
    """
    for ratio in ratios:
        if not math.isfinite(ratio) or ratio <= 1:
            what = f"ratio {ratio} is not a number above 1"
            raise SubpruneError(what, remedy="8 keeps an eighth of the parameters")
    for keep in keeps:
        if not 0 < keep < 1:
            what = f"keep {keep} is not between 0 and 1"
            raise SubpruneError(what, remedy="0.5 keeps half of the channels")
    for drop in drops:
        if not 0 < drop < 100:
            what = f"max_drop {drop} is not between 0 and 100 percentage points"
            raise SubpruneError(what, remedy="1 allows a drop from 98 to 97 %")
