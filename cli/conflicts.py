"""Options that make no sense together, or beside which others do nothing. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from subprune_fx.option_values import FILES

Values = Mapping[str, Any]

GOALS = {"--ratio": "ratio", "--max-drop": "max_drop", "--pareto": "pareto", "--plan": "plan"}
"""Options that say how small the network is to be, and their fields: one is needed, or --layers."""

DECIDING = (
    *("select", "variant", "budget", "target", "only", "skip", "align", "reweight", "intercept", "feedback"),
    *("rounds", "ridge", "rows", "distil", "stochastic", "train", "verify"),
)
"""Options that say how to decide what stays: with --plan that is decided."""

EXPLAINING = (
    *("model", "explain", "output", "only", "skip", "calib", "evaluate", "train", "verify", "samples", "preset"),
    *("resize", "crop", "mean", "std", "arch", "trust", "input_shape", "seed", "quiet", "verbose"),
)
"""Options that --explain reads, labelled inputs for their shape."""

Conflict = tuple[Callable[[Values], bool], str]
"""When options exclude each other, and what to say."""

_PRUNING: tuple[Conflict, ...] = (
    (
        lambda values: not _goals(values) and not values["layers"],
        f"Missing option '--ratio' (or {', '.join(list(GOALS)[1:])} or --layers).",
    ),
    (lambda values: not values["output"], "Missing option '-o'."),
    (
        lambda values: bool(values["quantize"]) and not _has_suffix(values, (".onnx",)),
        "--quantize needs an output that ends in .onnx.",
    ),
    (
        lambda values: (
            values["target"] == "size" and bool(values["ratio"] or values["pareto"]) and not _has_suffix(values, FILES)
        ),
        f"--target size needs an output that holds the network: {', '.join(FILES)}.",
    ),
    (lambda values: values["plan"] and values["layers"], "--plan and --layers exclude each other."),
    (lambda values: len(_goals(values)) > 1, "{goals} exclude each other."),
)
_ALWAYS: tuple[Conflict, ...] = (
    (lambda values: values["quiet"] and values["verbose"], "-q and -v exclude each other."),
)


def check(values: Values) -> None:
    """Refuse a command line whose options do not go together.

    Args:
        values: By field; the current click context knows which of them stand on the command line.

    Raises:
        click.UsageError: They do not.
    """
    for wrong, says in (*(() if values["explain"] else _PRUNING), *_ALWAYS):
        if wrong(values):
            raise click.UsageError(says.format(goals=" and ".join(_goals(values))))
    unread = [name for name in values if name not in EXPLAINING]
    for beside, fields, says in (
        ("explain", unread, "--explain prunes nothing; leave {options} out."),
        ("plan", DECIDING, "--plan has decided already; leave {options} out."),
    ):
        idle = _stated(fields) if values[beside] else ()
        if idle:
            raise click.UsageError(says.format(options=" and ".join(idle)))


def _goals(values: Values) -> list[str]:
    return [option for option, field in GOALS.items() if values[field] not in (None, ())]


def _has_suffix(values: Values, suffixes: Sequence[str]) -> bool:
    """Whether an output ends in one of them."""
    return any(path.suffix.lower() in suffixes for path in values["output"])


def _stated(fields: Sequence[str]) -> list[str]:
    """Those options among `fields` that stand on the command line."""
    context = click.get_current_context()
    stated = [field for field in fields if context.get_parameter_source(field) is ParameterSource.COMMANDLINE]
    return [parameter.opts[0] for parameter in context.command.params if parameter.name in stated]
