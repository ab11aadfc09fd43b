"""What `subprune-compile` can be told. Imports nothing heavy: `--help` and usage errors answer at once."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from subprune_fx.cli.input_options import input_options
from subprune_fx.cli.sections import Sectioned
from subprune_fx.option_values import (
    BUDGETS,
    DEFAULT_PRECISION,
    FILES,
    PRECISIONS,
    QUANTISED,
    SEEDS,
    SELECTORS,
    TARGETS,
    VARIANTS,
)
from subprune_fx.sizes import size_of

PROGRAM = "subprune-compile"

EPILOG = """
\b
Examples:
  subprune-compile model.pt2 --ratio 8 --calib inputs.npz -o small.onnx
  subprune-compile model.onnx --max-drop 1 --calib photos --preset imagenet -o small.onnx
  subprune-compile weights.pt --arch net.py:LeNet --ratio 8 -o small.onnx

Exit codes: 0 done, 1 the result failed validation, 2 bad input, 130 interrupted. Nothing is written unless
everything succeeded.
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """The command line, parsed. The fields are the options of the same names."""

    model: Path
    ratio: float | None
    max_drop: float | None
    pareto: tuple[float, ...]
    plan: Path | None
    explain: bool
    output: tuple[Path, ...]
    calib: str | None
    evaluate: str | None
    train: str | None
    verify: str | None
    samples: int | None
    preset: str | None
    resize: tuple[int, ...] | None
    crop: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    select: str
    variant: str
    budget: str | None
    target: str
    threads: int
    quantize: str | None
    only: tuple[str, ...]
    skip: tuple[str, ...]
    align: int | None
    layers: Path | None
    reweight: bool
    intercept: bool
    feedback: bool
    rounds: int
    ridge: float
    rows: int
    distil: int
    stochastic: float | None
    memory: int | None
    precision: str
    arch: str | None
    trust: bool
    input_shape: tuple[tuple[int, ...], ...]
    seed: int
    json: Path | None
    report: Path | None
    quiet: bool
    verbose: bool


def _ratio(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    del context, option
    if value is not None and (not math.isfinite(value) or value <= 1):
        raise click.BadParameter(f"{value:g} is not a number above 1 (8 keeps an eighth of the parameters).")
    return value


def _ratios(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        found = tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of ratios, such as 2,4,8.") from None
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{value!r} names a ratio twice.")
    for ratio in found:
        _ratio(context, option, ratio)
    return found


def _points(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    del context, option
    if value is not None and not 0 < value < 100:
        raise click.BadParameter(f"{value:g} is not between 0 and 100 percentage points.")
    return value


def _fraction(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    del context, option
    if value is not None and not 0 < value < 1:
        raise click.BadParameter(f"{value:g} is not between 0 and 1.")
    return value


def _memory(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    del context, option
    if value is None:
        return None
    try:
        found = size_of(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error
    if found < LEAST_MEMORY:
        raise click.BadParameter(f"{value!r} is less than 1 MiB; write a unit, such as 4GiB.")
    return found


def _version(context: click.Context, option: click.Parameter, value: bool) -> None:
    del option
    if not value or context.resilient_parsing:
        return
    try:
        version = importlib.metadata.version("subprune_fx")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"{PROGRAM} {version}")
    context.exit()


LEAST_MEMORY = 2**20

GOALS = {"--ratio": "ratio", "--max-drop": "max_drop", "--pareto": "pareto", "--plan": "plan"}
"""Options that say how small the network is to be, and their fields: one is needed."""


def _goals(values: Mapping[str, Any]) -> list[str]:
    return [option for option, field in GOALS.items() if values[field] not in (None, ())]


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
_UNREAD = tuple(field.name for field in dataclasses.fields(Request) if field.name not in EXPLAINING)
_IDLE = (
    ("explain", _UNREAD, "--explain prunes nothing; leave {options} out."),
    ("plan", DECIDING, "--plan has decided already; leave {options} out."),
)
"""Options that do nothing: beside which, which, and what to say."""
_OTHERS = "--max-drop, --pareto, --plan or --layers"
Clash = tuple[Callable[[Mapping[str, Any]], bool], str]
_PRUNING: tuple[Clash, ...] = (
    (
        lambda values: not _goals(values) and not values["layers"],
        f"Missing option '--ratio' (or {' or '.join(list(GOALS)[1:])}).",
    ),
    (lambda values: not values["output"], "Missing option '-o'."),
    (
        lambda values: bool(values["quantize"]) and not any(p.suffix.lower() == ".onnx" for p in values["output"]),
        "--quantize needs an output that ends in .onnx.",
    ),
    (
        lambda values: (
            values["target"] == "size"
            and bool(values["ratio"] or values["pareto"])
            and not any(path.suffix.lower() in FILES for path in values["output"])
        ),
        f"--target size needs an output that holds the network: {', '.join(FILES)}.",
    ),
    (lambda values: values["plan"] and values["layers"], "--plan and --layers exclude each other."),
    (lambda values: len(_goals(values)) > 1, "{goals} exclude each other."),
)
_ALWAYS: tuple[Clash, ...] = ((lambda values: values["quiet"] and values["verbose"], "-q and -v exclude each other."),)
"""Combinations of options that make no sense: when, and what to say."""


@click.command(
    name=PROGRAM,
    cls=Sectioned,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--ratio",
    type=float,
    callback=_ratio,
    metavar="R",
    help="Size before over after, above 1; --target says of what.",
)
@click.option("--max-drop", type=float, callback=_points, metavar="POINTS",
              help="Instead of --ratio: the smallest network that loses at most so many percentage points, of "
                   "accuracy on --verify, or else of agreement on calibration inputs held out.")  # fmt: skip
@click.option("--pareto", callback=_ratios, metavar="2,4,8",
              help="Instead of --ratio: several from one calibration, out-2.onnx and so on, and a curve.")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path), metavar="IN.plan",
              help="Instead of --ratio: do again what a plan (from -o out.plan) says.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Where to write; .onnx, .pt2, .pt, .safetensors or .plan. May be repeated.")  # fmt: skip
@input_options
@click.option("--select", type=click.Choice(SELECTORS), default="inchange", show_default=True, metavar="NAME",
              help=f"How channels are chosen: {', '.join(SELECTORS)}. Some need labels y in --calib, and say so."
              )  # fmt: skip
@click.option("--variant", type=click.Choice(VARIANTS), default="asym", show_default=True, metavar="|".join(VARIANTS),
              help="Which inputs layers are fitted on: the pruned network's towards the original's, the "
                   "pruned network's, or the original's.")  # fmt: skip
@click.option("--budget", type=click.Choice(BUDGETS), metavar="NAME",
              help="How the ratio is shared out among the layers: by the change of the output (output), by accuracy "
                   "(accuracy), by the layers' own error (error), or equally (uniform).  [default: output]"
              )  # fmt: skip
@click.option("--target", type=click.Choice(TARGETS), default="params", show_default=True, metavar="NAME",
              help="What --ratio counts: parameters (params), multiply-adds of one sample (flops), bytes of the first "
                   "output (size), or measured latency in onnxruntime (latency).")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, metavar="N",
              help="Of onnxruntime where latency is measured; 0 for all cores.")  # fmt: skip
@click.option("--quantize", type=click.Choice(QUANTISED), metavar="int8",
              help="Also write each .onnx with int8 weights and activations, as out-int8.onnx.")  # fmt: skip
@click.option("--only", multiple=True, metavar="LAYER",
              help="Prune only this layer, as the report names it; * and ? match. May be repeated.")  # fmt: skip
@click.option("--skip", "--keep", multiple=True, metavar="LAYER", help="Leave this layer alone. May be repeated.")
@click.option("--layers", type=click.Path(path_type=Path), metavar="FILE.toml",
              help="What single layers keep: tables [ratio] and [channels], LAYER = NUMBER. Without --ratio only "
                   "these are pruned.")  # fmt: skip
@click.option("--align", type=click.IntRange(min=1), metavar="N",
              help="Widths of pruned layers are multiples of N.  [default: 1, and 4 where convolutions read 8 or "
                   "more; with --target latency the fastest of 8, 4 and 1]")  # fmt: skip
@click.option(
    "--reweight/--no-reweight",
    default=True,
    help="Refit the weights of the layers that read pruned channels.",
)
@click.option("--intercept/--no-intercept", default=True, help="Refit their biases too.")
@click.option(
    "--feedback/--no-feedback",
    default=True,
    help="Let a residual branch make up for what its shortcut has lost.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    metavar="N",
    default=2,
    show_default=True,
    help="How often to refit a layer to what the activation behind it lets through.",
)
@click.option(
    "--ridge",
    type=click.FloatRange(min=0),
    metavar="R",
    default=1e-3,
    show_default=True,
    help="Pull of new weights towards the original ones.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    metavar="N",
    default=64,
    show_default=True,
    help="Positions of a convolution to fit it on, for each weight of an output channel; 0 for all.",
)
@click.option(
    "--distil",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="STEPS",
    help="Then train it towards the original network's outputs on the calibration inputs; no labels needed.",
)
@click.option(
    "--stochastic",
    type=float,
    callback=_fraction,
    metavar="EPS",
    help="Sampled greedy: faster, error up to EPS worse.",
)
@click.option(
    "--memory",
    callback=_memory,
    metavar="4GiB",
    help="Most activations to keep in memory; the rest goes to temporary files.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    metavar="|".join(PRECISIONS),
    default=DEFAULT_PRECISION,
    show_default=True,
    help="Of forward passes over the calibration inputs; what is fitted to them is not rounded.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Prune nothing: print what could be, what not and why; -o draws it (.svg, .html or .dot).",
)
@click.option(
    "--arch",
    metavar="WHERE:NAME",
    help="The network of a state dict: FILE.py:NAME or package.module:NAME. It is run.",
)
@click.option("--trust", is_flag=True, help="Load MODEL even if that runs code from it.")
@click.option(
    "--seed", type=click.IntRange(0, SEEDS - 1), default=0, show_default=True, metavar="N", help="Of everything random."
)
@click.option("--json", type=click.Path(path_type=Path), metavar="REPORT.json", help="Write the report as JSON too.")
@click.option("--report", type=click.Path(path_type=Path), metavar="OUT.html",
              help="Write the report as a page too: curves, layers, what is coupled and what stays.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Also list what was not pruned and why, and tracebacks.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def command(**values: Any) -> Request:
    """Make the trained network MODEL smaller and write it as a validated file.

    MODEL is a .pt or .pth file (a state dict with --arch, or a network), a .safetensors file with --arch, a .pt2
    archive of torch.export, or an .onnx file.
    """
    for wrong, says in (*(() if values["explain"] else _PRUNING), *_ALWAYS):
        if wrong(values):
            raise click.UsageError(says.format(goals=" and ".join(_goals(values))))
    for beside, fields, says in _IDLE:
        idle = _given(fields) if values[beside] else ()
        if idle:
            raise click.UsageError(says.format(options=" and ".join(idle)))
    return Request(**values)


def _given(fields: Sequence[str]) -> list[str]:
    """Those options among `fields` that stand on the command line."""
    context = click.get_current_context()
    stated = [field for field in fields if context.get_parameter_source(field) is ParameterSource.COMMANDLINE]
    return [parameter.opts[0] for parameter in context.command.params if parameter.name in stated]
