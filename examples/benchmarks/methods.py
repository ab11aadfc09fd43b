"""Every system of the comparison: one row a method, as the paper runs it, and this project's own."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

TABLES = Path(__file__).with_name("paper_tables.csv")
"""The paper's tables 3 to 5: accuracy in %, speed-up ratio, pruning time."""

SPARED: dict[str, tuple[str, ...]] = {
    "lenet_mnist": (),
    "resnet56_cifar10": ("conv1", "layer2.0.conv2", "layer3.0.conv2"),
    "vgg11_cifar10": ("25",),
}
"""What the paper does not prune (section 7): ResNet56's residual streams, VGG11's last features layer."""

VERIFICATION = {"lenet_mnist": 10_000, "resnet56_cifar10": 512, "vgg11_cifar10": 512}
"""Labelled training images for eq. (6). The paper takes 10,000; on one core ResNet56 would need hours for them."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One system.

    Attributes:
        title: As the tables call it.
        options: Keywords of `subprune_fx.prune_each`; empty for another program's.
        paper: Whether it is run as the paper runs it: labels and verification images for eq. (6), without intercept,
            on the layers that the paper prunes.
        spared: Whether what the paper does not prune is left alone.
        training: Whether it gets the whole training set.
        rival: Whether another program does it (`rivals.RIVALS`).
        both: Whether it is run with and without reweighting.
    """

    title: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: bool = True
    spared: bool = True
    training: bool = False
    rival: bool = False
    both: bool = True


def _paper(
    title: str, select: str, variant: str = "seq", *, own_budget: bool = False, training: bool = False
) -> Method:
    """A system of the paper. Its code reweights all but AsymInChange towards the pruned network's own outputs (`seq`).

    Plain least squares and any widths, as in the paper: next to no ridge, and none of what this project adds.
    """
    budget = None if own_budget else "accuracy"
    plain = {"intercept": False, "feedback": False, "rounds": 0, "ridge": 1e-6, "align": 1}
    return Method(title, {"select": select, "variant": variant, "budget": budget, **plain}, training=training)


def _own(title: str, *, spared: bool = False, **options: Any) -> Method:
    """This project's own, its defaults changed in `options`."""
    return Method(title, options, paper=False, spared=spared, both=False)


# LayerGreedyFS tries every unit left at every step, each try a pass through the rest of the network: minutes for LeNet,
# hours for ResNet56 on one core. "sampled" tries n / k log 10 of them.
METHODS: dict[str, Method] = {
    "ours": _own("subprune_fx"),
    "ours-distilled": _own("subprune_fx, 1,000 steps of distillation", distil=1000),
    "ours-any-widths": _own("subprune_fx, any widths", align=1),
    "ours-inner": _own("subprune_fx, residual streams whole", spared=True),
    "ours-no-intercept": _own("subprune_fx without intercept", intercept=False),
    "ours-no-feedback": _own("subprune_fx without feedback", feedback=False),
    "ours-no-rounds": _own("subprune_fx without rounds", rounds=0),
    "ours-fixed-ridge": _own("subprune_fx with --ridge 0.001", ridge=1e-3),
    "ours-all-rows": _own("subprune_fx, all positions", rows=0),
    "ours-error-budget": _own("subprune_fx with the error budget", budget="error"),
    "ours-accuracy-budget": _own("subprune_fx with eq. (6), label-free", budget="accuracy"),
    "ours-layer": _own("subprune_fx, layer variant", variant="layer"),
    "ours-seq": _own("subprune_fx, seq variant", variant="seq"),
    "asyminchange": _paper("AsymInChange", "inchange", "asym"),
    "seqinchange": _paper("SeqInChange", "inchange", "seq"),
    "layerinchange": _paper("LayerInChange", "inchange", "layer"),
    "stochastic": _paper("stochastic greedy", "stochastic", "asym"),
    "actgrad": _paper("ActGrad", "actgrad", own_budget=True),
    "layeractgrad": _paper("LayerActGrad", "layeractgrad"),
    "layerweightnorm": _paper("LayerWeightNorm", "layerweightnorm"),
    "weightnorm": _paper("WeightNorm", "weightnorm", own_budget=True),
    "layersampling": _paper("LayerSampling", "layersampling", own_budget=True),
    "layergreedyfs": _paper("LayerGreedyFS", "layergreedyfs"),
    "layergreedyfs-sampled": dataclasses.replace(
        _paper("LayerGreedyFS, sampled candidates", "layergreedyfs"),
        options={**_paper("", "layergreedyfs").options, "stochastic": 0.1},
    ),
    "layergreedyfs-fd": _paper("LayerGreedyFS-fd", "layergreedyfs-fd", training=True),
    "random": _paper("Random", "random", own_budget=True),
    "layerrandom": _paper("LayerRandom", "layerrandom"),
    "torch-pruning": Method("Torch-Pruning, L2", paper=False, rival=True, both=False),
    "torch-pruning-bn": Method("Torch-Pruning, L2, BatchNorm recalibrated", paper=False, rival=True, both=False),
    "onnxsim": Method("onnxsim, L2", paper=False, rival=True, both=False),
    "onnxsim-wanda": Method("onnxsim, Wanda", paper=False, rival=True, both=False),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """What the paper says of one run.

    Attributes:
        accuracy: %.
        speedup: FLOPs before over after.
        seconds: Pruning time.
    """

    accuracy: float
    speedup: float
    seconds: int


@functools.cache
def published() -> dict[tuple[str, str, bool, bool, int], Published]:
    """By network, method, reweighted, fine-tuned on the training set, ratio."""
    with TABLES.open(encoding="utf-8", newline="") as file:
        return {
            (row["net"], row["method"], row["reweighted"] == "1", row["tuned"] == "1", int(row["ratio"])): Published(
                float(row["accuracy"]), float(row["speedup"]), int(row["seconds"])
            )
            for row in csv.DictReader(file)
        }


def _named(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(METHODS) if value == "all" else tuple(value.split(","))
    if unknown := set(names) - set(METHODS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: known are all, {', '.join(METHODS)}")
    return names


methods_option = click.option(
    "--methods", callback=_named, default="ours", show_default=True, help="Names separated by commas, or all."
)
