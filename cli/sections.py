"""The command's help, its options under headings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

import click

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "How small": ("ratio", "target", "max_drop", "pareto", "plan", "explain"),
    "Outputs": ("output", "quantize", "json", "report"),
    "The network": ("arch", "trust", "input_shape"),
    "Inputs": ("calib", "eval", "verify", "train", "samples", "preset", "resize", "crop", "mean", "std"),
    "Which layers": ("only", "skip", "layers", "align"),
    "How channels are chosen": ("select", "variant", "budget", "stochastic"),
    "How weights are refitted": ("reweight", "intercept", "feedback", "rounds", "ridge", "rows", "distil"),
    "Time and memory": ("threads", "precision", "memory", "seed"),
    "Messages": ("quiet", "verbose", "version", "help"),
}
"""Options by heading: their long names, as Python spells them."""


Record = tuple[str, str]
"""An option as the help has it: how it is spelled, and what it says."""


class Sectioned(click.Command):
    """A command whose help has headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        for heading, records in records_of(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)


def records_of(command: click.Command, context: click.Context) -> dict[str, list[Record]]:
    """Options by heading."""
    found = {name_of(option): option.get_help_record(context) for option in options_of(command, context)}
    return {
        heading: [record for name in names if (record := found[name]) is not None]
        for heading, names in SECTIONS.items()
    }


def options_of(command: click.Command, context: click.Context) -> list[click.Option]:
    """With `--help`, without arguments."""
    return [option for option in command.get_params(context) if isinstance(option, click.Option)]


def name_of(option: click.Option) -> str:
    """As `SECTIONS` has it: of `--max-drop`, `max_drop`."""
    long = next(spelling for spelling in option.opts if spelling.startswith("--"))
    return long.removeprefix("--").replace("-", "_")
