"""How much accuracy is kept without any data: the paper's networks at c = 2, calibrated on real and on made-up inputs.

    python examples/benchmarks/data_free.py --data FOLDER

Prints a line per network and kind of inputs: top-1 accuracy on the whole test set, and the seconds that making them up
and pruning took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from data import Images, data_option, draw, load_images, normalise
from models import BENCHMARKS, load_network, nets_option
from runs import top1
from torch import Tensor, nn

import subprune_fx
from subprune_fx.passes.synthesise import Wanted, synthesise

SAMPLES = 512


def real(_network: nn.Module, images: Images, kind: str, seed: int) -> Tensor:
    """Training images."""
    return normalise(images.train[draw(len(images.train), SAMPLES, seed)], kind)


def made_up(network: nn.Module, images: Images, _kind: str, seed: int) -> Tensor:
    """What the command uses without `--calib`."""
    found = synthesise(network, [Wanted("x", images.train.shape[1:])], seed).inputs
    assert isinstance(found, Tensor)
    return found


def noise(_network: nn.Module, images: Images, _kind: str, seed: int) -> Tensor:
    """Normal noise, for comparison."""
    return torch.randn(SAMPLES, *images.train.shape[1:], generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, Callable[[nn.Module, Images, str, int], Tensor]] = {"real": real, "made up": made_up, "noise": noise}


@click.command()
@data_option
@nets_option
@click.option("--ratio", type=float, default=2.0, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="Which inputs.")
def main(data: Path | None, nets: tuple[str, ...], ratio: float, seed: int, kinds: str) -> None:
    """Print the table."""
    click.echo("| network | inputs | accuracy % | seconds to make | seconds to prune |\n|---|---|---|---|---|")
    for name in nets:
        kind = BENCHMARKS[name].images
        network, images = load_network(name, data), load_images(kind, data)
        for label in kinds.split(","):
            start = time.perf_counter()
            inputs = KINDS[label](network, images, kind, seed)
            made = time.perf_counter()
            small = subprune_fx.prune(network, inputs, ratio=ratio, seed=seed).module
            done = time.perf_counter()
            accuracy = top1(small, images, kind)
            click.echo(f"| {name} | {label} | {accuracy:.2f} | {made - start:.1f} | {done - made:.1f} |")


if __name__ == "__main__":
    main()
