"""The options of `subprune-compile`. Imports nothing heavy: `--help` and usage errors answer at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from subprune_fx.cli import conflicts
from subprune_fx.cli import values as read
from subprune_fx.cli.input_options import input_options
from subprune_fx.cli.sections import Sectioned
from subprune_fx.cli.values import PROGRAM
from subprune_fx.option_values import (
    BUDGETS,
    DEFAULT_PRECISION,
    PRECISIONS,
    QUANTISED,
    SEEDS,
    SELECTORS,
    TARGETS,
    VARIANTS,
)

EPILOG = """
\b
Examples:
  subprune-compile model.pt2 --ratio 8 --calib inputs.npz -o small.onnx
  subprune-compile model.onnx --max-drop 1 --calib photos --preset imagenet -o small.onnx
  subprune-compile weights.pt --arch net.py:LeNet --ratio 8 -o small.onnx

Exit codes: 0 done, 1 the result failed validation, 2 bad input, 70 a fault of this program, 130 interrupted. Nothing is
written unless everything succeeded.
"""
PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=0)


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
    ridge: float | None
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


# fmt: off
@click.command(name=PROGRAM, cls=Sectioned, epilog=EPILOG,
               context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", type=PATH)
@click.option("--ratio", type=float, callback=read.ratio, metavar="R",
              help="Size before over size after, above 1; --target says of what.")
@click.option("--max-drop", type=float, callback=read.points, metavar="POINTS",
              help="Instead of --ratio: the smallest network that loses at most so many percentage points, of "
                   "accuracy on --verify, or without it of agreement with the original on calibration inputs that "
                   "are held out.")
@click.option("--pareto", callback=read.ratios, metavar="2,4,8",
              help="Instead of --ratio: several ratios from one calibration, written as out-2.onnx and so on, and "
                   "their curve.")
@click.option("--plan", type=PATH, metavar="IN.plan",
              help="Instead of --ratio: carry out again what a plan (from -o out.plan) says.")
@click.option("-o", "--output", type=PATH, multiple=True, metavar="FILE",
              help="Where to write: .onnx, .pt2, .pt, .safetensors or .plan. May be repeated.")
@input_options
@click.option("--select", type=click.Choice(SELECTORS), default="inchange", show_default=True, metavar="NAME",
              help=f"How channels are chosen: {', '.join(SELECTORS)}. Some need labels y in --calib, and say so.")
@click.option("--variant", type=click.Choice(VARIANTS), default="asym", show_default=True, metavar="|".join(VARIANTS),
              help="Which inputs layers are fitted on: the pruned network's, towards the original's outputs (asym); "
                   "the pruned network's (seq); or the original's (layer).")
@click.option("--budget", type=click.Choice(BUDGETS), metavar="NAME",
              help="How the ratio is shared out among the layers: by the change of the output (output), by accuracy "
                   "(accuracy), by the layers' own error (error), or equally (uniform).  [default: output]")
@click.option("--target", type=click.Choice(TARGETS), default="params", show_default=True, metavar="NAME",
              help="What --ratio counts: parameters (params), multiply-adds of one sample (flops), bytes of the first "
                   "output (size), or measured latency in onnxruntime (latency).")
@click.option("--threads", type=COUNT, default=1, show_default=True, metavar="N",
              help="Threads of onnxruntime where latency is measured; 0 for all cores.")
@click.option("--quantize", type=click.Choice(QUANTISED), metavar="int8",
              help="Also write each .onnx with int8 weights and activations, as out-int8.onnx.")
@click.option("--only", multiple=True, metavar="LAYER",
              help="Prune only this layer, as the report names it; * and ? match. May be repeated.")
@click.option("--skip", "--keep", multiple=True, metavar="LAYER", help="Leave this layer alone. May be repeated.")
@click.option("--layers", type=PATH, metavar="FILE.toml",
              help="What single layers keep: tables [ratio] and [channels], LAYER = NUMBER. Without --ratio only "
                   "these are pruned.")
@click.option("--align", type=click.IntRange(min=1), metavar="N",
              help="Widths of pruned layers are multiples of N.  [default: 4 for layers of 16 and more channels that "
                   "convolutions read, else 1; with --target latency the best of 8, 4 and 1]")
@click.option("--reweight/--no-reweight", default=True, show_default=True,
              help="Refit the weights of the layers that read pruned channels.")
@click.option("--intercept/--no-intercept", default=True, show_default=True, help="Refit their biases too.")
@click.option("--feedback/--no-feedback", default=True, show_default=True,
              help="Let a residual branch make up for what its shortcut has lost.")
@click.option("--rounds", type=COUNT, default=2, show_default=True, metavar="N",
              help="How often to refit a layer to what the activation behind it lets through.")
@click.option("--ridge", type=click.FloatRange(min=0), metavar="R",
              help="How strongly new weights are pulled towards the original ones, relative to the mean square of "
                   "what the layer reads.  [default: 0.001, with fewer than 512 inputs up to 0.064, and more where "
                   "cross-validation asks for it]")
@click.option("--rows", type=COUNT, default=64, show_default=True, metavar="N",
              help="Output positions that a convolution is fitted on, for each weight of an output channel; 0 for "
                   "all.")
@click.option("--distil", type=COUNT, default=0, show_default=True, metavar="STEPS",
              help="After pruning, train the smaller network for so many steps towards the original's outputs on the "
                   "calibration inputs; no labels needed.")
@click.option("--stochastic", type=float, callback=read.fraction, metavar="EPS",
              help="Greedy selection looks at a random sample of candidates: faster, and its guarantee lower by EPS.")
@click.option("--memory", callback=read.memory, metavar="4GiB",
              help="Most activations to keep in memory; the rest goes to temporary files.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=DEFAULT_PRECISION, show_default=True,
              metavar="|".join(PRECISIONS),
              help="Precision of forward passes over the calibration inputs; least squares stay float32 and float64.")
@click.option("--explain", is_flag=True,
              help="Prune nothing: print what could be pruned, what not and why; -o draws it (.svg, .html or .dot).")
@click.option("--arch", metavar="WHERE:NAME",
              help="The class that a state dict belongs to: FILE.py:NAME or package.module:NAME. It is run.")
@click.option("--trust", is_flag=True, help="Load MODEL even if that runs code from the file.")
@click.option("--seed", type=click.IntRange(0, SEEDS - 1), default=0, show_default=True, metavar="N",
              help="Seed of everything random.")
@click.option("--json", type=PATH, metavar="REPORT.json", help="Write the report as JSON too.")
@click.option("--report", type=PATH, metavar="OUT.html",
              help="Write the report as a page too: curves, layers, what is coupled and what stays.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True,
              help="Also list what was not pruned and why, the time of each stage, and tracebacks.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=read.version,
              help="Show the version.")
def command(**values: Any) -> Request:
    """Make the trained network MODEL smaller and write it as a validated file.

    MODEL is a .pt or .pth file (a state dict with --arch, or a network), a .safetensors file with --arch, a .pt2
    archive of torch.export, or an .onnx file.
    """
    conflicts.check(values)
    return Request(**values)
